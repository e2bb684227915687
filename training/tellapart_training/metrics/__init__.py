"""Caption metrics without Java: CIDEr-D, BLEU-4 and ROUGE-L, as pycocoevalcap computes them.

`tests/training/check_metrics_against_pycocoevalcap.py` compares both on the Flickr8k `val` captions.
"""

from tellapart_training.metrics.bleu import corpus_bleu
from tellapart_training.metrics.cider import DocumentFrequencies, cider_d
from tellapart_training.metrics.rouge import rouge_l
from tellapart_training.metrics.words import metric_words

__all__ = ["DocumentFrequencies", "cider_d", "corpus_bleu", "metric_words", "rouge_l"]
