"""Alt text as XMP, the small file that photo managers keep beside a photo.

    path.with_name(path.name + ".xmp").write_text(alt_text_xmp(caption.text, model=bundle.sha256))

The text goes where the IPTC Photo Metadata Standard (2021.1) has it: `Iptc4xmpCore:AltTextAccessibility`,
kept apart from titles and descriptions, which people write. A property of our own names the model, so that
a reader can tell a machine's words from a person's, and so that we never replace what others wrote.

digiKam, darktable and Immich look for `photo.jpg.xmp`; Adobe's programs keep XMP of JPEGs inside the file and
read no file beside it.
"""

from __future__ import annotations

__all__ = ["MODEL_NAMESPACE", "alt_text_xmp", "model_of_xmp"]

MODEL_NAMESPACE = "urn:tellapart:xmp:1.0/"
"""Namespace of the property `model`."""

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_IPTC = "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/"


def alt_text_xmp(text: str, *, model: str, language: str = "en") -> str:
    """A whole XMP file with one alt text.

    Args:
        text: the caption; control characters, which XML cannot hold, become spaces.
        model: SHA-256 of the manifest of the bundle that wrote it, 64 hexadecimal digits.
        language: of the text, as BCP 47 has it; the same text also stands under "x-default", which XMP wants
            first.

    Returns:
        UTF-8 text, ready to be written to a file.
    """
    # Imported where it is needed: it brings urllib and http along, 18 ms of every other caption's start.
    from xml.sax.saxutils import escape, quoteattr

    clean = "".join(letter if letter.isprintable() else " " for letter in text)
    items = "".join(
        f"     <rdf:li xml:lang={quoteattr(tag)}>{escape(clean)}</rdf:li>\n"
        for tag in ("x-default", language)
    )
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
        f' <rdf:RDF xmlns:rdf="{_RDF}">\n'
        f'  <rdf:Description rdf:about="" xmlns:Iptc4xmpCore="{_IPTC}" xmlns:tellapart="{MODEL_NAMESPACE}"'
        f" tellapart:model={quoteattr(model)}>\n"
        "   <Iptc4xmpCore:AltTextAccessibility>\n"
        "    <rdf:Alt>\n"
        f"{items}"
        "    </rdf:Alt>\n"
        "   </Iptc4xmpCore:AltTextAccessibility>\n"
        "  </rdf:Description>\n"
        " </rdf:RDF>\n"
        "</x:xmpmeta>\n"
        '<?xpacket end="w"?>\n'
    )


def model_of_xmp(content: bytes) -> str | None:
    """Which model wrote an XMP file, if we did and nobody added to it since.

    Written again from what it says and compared, so that a file which another program took over (ratings,
    edits) counts as that program's.

    Args:
        content: the bytes of the file.

    Returns:
        The hash that `alt_text_xmp` was given, or None.
    """
    import xml.etree.ElementTree as tree

    # Ours has no entities; a file that declares some is not ours and is not parsed.
    if b"<!" in content:
        return None
    try:
        root = tree.fromstring(content.decode("utf-8"))
    except (ValueError, tree.ParseError):
        return None
    description = root.find(f"{{{_RDF}}}RDF/{{{_RDF}}}Description")
    model = None if description is None else description.get(f"{{{MODEL_NAMESPACE}}}model")
    items = root.findall(f".//{{{_RDF}}}li")
    if model is None or len(items) != 2:
        return None
    language = items[1].get("{http://www.w3.org/XML/1998/namespace}lang") or ""
    ours = alt_text_xmp(items[0].text or "", model=model, language=language)
    return model if ours.encode("utf-8") == content.replace(b"\r\n", b"\n") else None
