"""The names of a judged funnel's files and rows; no import is heavy here."""

FOLDER = "funnel"  # in the folder of the run
METRICS, PER_USER, PICTURE = "metrics.json", "users.parquet", "funnel.png"
# Lists of ads; the last four need less than the whole funnel.
FUNNEL, IDEAL = "funnel", "ideal order of candidates"
RETRIEVAL, ITEM_ITEM = "retrieval alone", "item-item"
POPULARITY, RANDOM = "popularity", "random"
RIVALS = (RETRIEVAL, ITEM_ITEM, POPULARITY, RANDOM)
CANDIDATES = "candidates"  # all that the ranker gets, in no order
VALUE, RECALL, NDCG = "value", "recall", "ndcg"  # figures of a list
