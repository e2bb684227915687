"""What PyInstaller freezes: the window, its worker (`--worker`), and a look at both (`--try PHOTO`).

make freeze      builds build/desktop/tellapart-desktop and tries it
"""

from __future__ import annotations

import json
import sys
import time

STARTED_S = time.monotonic()


def try_out(photo: str) -> int:
    """Open the window, caption one photo, say how long both took, and close; 1 where no caption came."""
    from pathlib import Path

    from PySide6.QtCore import QTimer
    from PySide6.QtWidgets import QApplication

    from tellapart_app.session import Session
    from tellapart_app.window import MainWindow

    app = QApplication(sys.argv[:1])
    session = Session()
    window = MainWindow(session)
    found: dict[str, object] = {}

    def painted() -> None:
        found["window_s"] = round(time.monotonic() - STARTED_S, 3)
        window.add_photos([Path(photo)])

    def answered(_: str, record: dict[str, object]) -> None:
        found.update(record, caption_s=round(time.monotonic() - STARTED_S, 3))
        window.close()
        app.exit(0 if "caption" in record else 1)

    session.answered.connect(answered)
    window.show()
    window.repaint()
    QTimer.singleShot(0, painted)
    QTimer.singleShot(60_000, lambda: app.exit(1))
    status = int(app.exec())
    print(json.dumps({**found, "ended_s": round(time.monotonic() - STARTED_S, 3)}), flush=True)
    return status


def main() -> int:
    """Be what the first argument says."""
    if sys.argv[1:2] == ["--worker"]:
        from tellapart_app.worker import main as work

        return work(sys.argv[2:])
    if sys.argv[1:2] == ["--try"]:
        return try_out(sys.argv[2])
    from pathlib import Path

    from tellapart_app.window import run_window

    return run_window([Path(name) for name in sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
