"""Find photos of a folder by words.

    python examples/search_photos.py                                  the sample photos
    python examples/search_photos.py my-photos "a dog in the snow"

The index lies in your cache folder; a second search of the same folder looks only at what is new.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tellapart import Retriever
from tellapart.search import open_index

SAMPLES = Path(__file__).parents[1] / "samples" / "photos"


def main(argv: list[str] | None = None) -> int:
    """Print the best matches, best first."""
    arguments = sys.argv[1:] if argv is None else argv
    folder, query = (
        arguments if len(arguments) == 2 else (str(SAMPLES), "a man takes a picture with a camera")
    )
    with Retriever.open() as retriever:
        index = open_index(folder, retriever)
        for match in retriever.search(query, index, top=3):
            print(f"{match.score:+.3f}  {match.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
