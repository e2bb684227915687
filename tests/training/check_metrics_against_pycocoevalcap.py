"""Compare our caption metrics with pycocoevalcap's, which needs Java; not part of the default test run.

    PYTHONPATH=sdk:training python tests/training/check_metrics_against_pycocoevalcap.py \
        ../shared/data/flickr8k/captions.jsonl

Caption 1 of every `val` image is scored against the other four. Prints both sides and how many captions our
tokenizer cuts otherwise; exits 1 when a score differs by more than 0.0005.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tellapart_training.metrics import cider_d, corpus_bleu, metric_words, rouge_l

_TOLERANCE = 5e-4


def main(path: Path) -> int:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    captions = [record["captions"] for record in records if record["split"] == "val"]
    tokenized = PTBTokenizer().tokenize(
        {index: [{"caption": text} for text in texts] for index, texts in enumerate(captions)}
    )
    theirs_words = [[text.split() for text in tokenized[index]] for index in range(len(captions))]
    ours_words = [[metric_words(text) for text in texts] for texts in captions]
    different = [
        (text, their, our)
        for texts, theirs, ours in zip(captions, theirs_words, ours_words, strict=True)
        for text, their, our in zip(texts, theirs, ours, strict=True)
        if their != our
    ]
    for text, their, our in different[:40]:
        print(f"{text!r}\n   pycocoevalcap {' '.join(their)}\n   ours          {' '.join(our)}")
    print(f"{len(different)} of {sum(map(len, captions))} captions tokenized otherwise")

    gts = {index: tokenized[index][1:] for index in range(len(captions))}
    res = {index: tokenized[index][:1] for index in range(len(captions))}
    theirs = {
        "cider_d": float(Cider().compute_score(gts, res)[0]),
        "bleu": [float(score) for score in Bleu(4).compute_score(gts, res, verbose=0)[0]],
        "rouge_l": float(Rouge().compute_score(gts, res)[0]),
    }
    candidates = [texts[0] for texts in ours_words]
    references = [texts[1:] for texts in ours_words]
    ours = {
        "cider_d": sum(cider_d(candidates, references)) / len(candidates),
        "bleu": corpus_bleu(candidates, references),
        "rouge_l": sum(rouge_l(candidates, references)) / len(candidates),
    }
    print("pycocoevalcap", json.dumps(theirs))
    print("ours         ", json.dumps(ours))
    gaps = [abs(a - b) for a, b in zip(_flat(theirs), _flat(ours), strict=True)]
    print(f"largest gap {max(gaps):.2e}")
    return int(max(gaps) > _TOLERANCE)


def _flat(scores: dict[str, object]) -> list[float]:
    bleu = scores["bleu"]
    return [
        float(str(scores["cider_d"])),
        *(bleu if isinstance(bleu, list) else []),
        float(str(scores["rouge_l"])),
    ]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
