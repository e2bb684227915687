"""Networks into device bundles: exported, proved equal, packed. Server side; a device never imports it."""
