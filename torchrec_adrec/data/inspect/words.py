"""What the name of a column tells of its purpose; the first word of a list is best."""

import re
from collections.abc import Sequence

LABELS = (
    *("click", "clicked", "clk", "geklickt", "clic", "label", "target", "y"),
    *("conversion", "converted", "purchase", "purchased", "bought", "gekauft", "buy"),
    *("liked", "like", "install", "engaged", "opened", "view", "positive", "outcome"),
    *("finished", "completed", "subscribed", "watched", "played", "listened"),
)
RATINGS = ("rating", "stars", "score", "overall", "bewertung", "note")
USERS = (
    *("user", "uid", "visitor", "customer", "kunde", "kunden", "client", "member"),
    *("subscriber", "account", "reader", "household", "person", "utilisateur"),
    *("nutzer", "benutzer", "leser", "besucher", "abonnent"),
    *(
        "listener",
        "viewer",
        "player",
        "student",
        "patient",
        "guest",
        "shopper",
        "buyer",
    ),
    *("cookie", "device"),
)
# One request shows several ads: the ads of one are compared, but it never comes back.
REQUESTS = ("display", "session", "impression", "request", "query", "search")
ADS = (
    *("ad", "item", "creative", "banner", "product", "sku", "asin", "artikel"),
    *("article", "produkt", "produit", "offer", "listing", "movie", "video", "film"),
    *("book", "isbn", "song", "track", "game", "news", "content", "document", "post"),
    *("recipe", "hotel", "property", "job", "goods", "app", "episode", "podcast"),
    *("course", "lesson", "restaurant", "venue"),
)
AD_SIDE = {
    *ADS,
    *("price", "preis", "prix", "brand", "marke", "category", "kategorie", "title"),
    *("titel", "genre", "genres", "campaign", "advertiser", "seller", "author", "tags"),
    *("ressort", "rubrik", "kampagne"),
}
USER_SIDE = {
    *(*USERS, "age", "gender", "country", "city", "os", "browser"),
    *("alter", "geschlecht", "land", "stadt", "wohnort", "gerät"),
}
TIMES = (
    *("ts", "timestamp", "time", "datetime", "date", "datum", "zeit", "zeitpunkt"),
    *("created", "at", "t", "epoch", "unix", "day", "hour"),
)
AFTERWARDS = {
    *("revenue", "umsatz", "income", "profit", "dwell", "watch", "watched", "spent"),
    *("verweildauer", "lesedauer"),
    *(
        "gmv",
        "payout",
        "play",
        "played",
        "listened",
        "viewed",
        "progress",
        "completion",
    ),
}
QUANTITIES = {
    *("age", "alter", "price", "preis", "prix", "count", "num", "amount", "duration"),
    *("length", "year", "hits", "views", "score", "rank", "size", "weight", "quantity"),
    *("days", "minutes", "seconds", "stars", "rating", "width", "height", "distance"),
}
IDS = {"id", "code", "zip", "plz", "postcode", "type", "category", "hash", "key", "no"}
ENDING = r"_?(ids?|nr|no|num|number|nummer|code|key|hash|uuid)$"


def words(name: str) -> list[str]:
    """The words of a name: `userId` and `user_id` are both user and id."""
    spaced = re.sub(r"([a-z0-9])([A-Z])", r"\1 \2", name)
    return [word for word in re.split(r"[\W_]+", spaced.lower()) if word]


def base(name: str) -> str:
    """The word that an id's name is about: `movie` of `movieId`; empty if several."""
    joined = "_".join(words(name))
    rest = re.sub(ENDING, "", joined) or joined
    return rest if "_" not in rest else ""


def rank(name: str, known: Sequence[str]) -> int | None:
    """The place in a list of the word that an id's name is about."""
    # `uid` and `isbn` are words of their own, whatever they end on.
    for word in ("_".join(words(name)), base(name)):
        if word in known:
            return known.index(word)
    return None


def ends_on(name: str, known: Sequence[str]) -> bool:
    """Whether the last word of an id's name is in a list: `session_user_id` on user."""
    joined = "_".join(words(name))
    return (re.sub(ENDING, "", joined) or joined).rpartition("_")[2] in known


def mentions(name: str, known: Sequence[str] | set[str]) -> bool:
    """Whether one word of a name is in a list."""
    return any(word in known for word in words(name))
