"""An ad world whose law is known: the equations of docs/known_world.md and its optima.

    relevance   = sigmoid(bias + activity(u) + quality(a) + affinity * u(t) . v
                          + fit(device, format(a)) + evening(t))
    p(click)    = relevance * position ** -position_bias
    p(engage)   = sigmoid(depth(a) + DEEPER * u(t) . v)              given a click
    E[value]    = price(a) * (1 + LIFT * p(engage))                  given a click

Shape letters: B rows, U users, N ads.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from torchrec_adrec.arrays import Float64s, Int64s
from torchrec_adrec.config.data import SyntheticConfig
from torchrec_adrec.errors import DataError

GROUPS, CAMPAIGNS, LATENT_DIM = 20, 30, 8
FORMATS, DEVICES, HOURS = 10, 3, 24
BIAS = -2.8
SPREAD = 0.1  # of a user around the group and an ad around the campaign, on each axis
EVENING, PEAK_HOUR = 0.3, 20
DEEPER, LIFT = 2.0, 3.0
CHUNK_CELLS = 4_000_000  # (user, ad) pairs held at a time, about 150 MB


class Users(NamedTuple):
    """The users, who are shown ads.

    Attributes:
        group: (U,) the segment.
        vector: (U, 8) unit vectors, the tastes on the first day.
        turn: (U, 8) unit vectors at right angles to `vector`, towards which the tastes
            drift.
        activity: (U,) additive part of the click's logit.
    """

    group: Int64s
    vector: Float64s
    turn: Float64s
    activity: Float64s


class Ads(NamedTuple):
    """The ads.

    Attributes:
        campaign: (N,); `format` (N,) follows from it.
        vector: (N, 8) unit vectors around the campaign's.
        quality: (N,) additive part of the click's logit.
        depth: (N,) additive part of the engagement's logit, lower for clickbait.
        price: (N,) value of a click without engagement, in money.
        birth: (N,) days; before it an ad is never shown.
    """

    campaign: Int64s
    format: Int64s
    vector: Float64s
    quality: Float64s
    depth: Float64s
    price: Float64s
    birth: Float64s


class Shown(NamedTuple):
    """Impressions, or parts of them that broadcast against each other.

    Attributes:
        user, ad: the numbers of who was shown what.
        time: days since the start.
        position: 1 is the best place.
        device: 0, 1, 2.
    """

    user: Int64s
    ad: Int64s
    time: Float64s
    position: Int64s
    device: Int64s


class Truth(NamedTuple):
    """The law's expectations of impressions.

    Attributes:
        p_click: (B,) probability of a click.
        p_engagement: (B,) given a click.
        expected_value: (B,) given a click, in money.
    """

    p_click: Float64s
    p_engagement: Float64s
    expected_value: Float64s


class World:
    """Users, ads and the law by which they meet; (config, seed) determine all of it.

    `config.rows` has no effect here, and users and ads are drawn from random numbers of
    their own: more users do not change the ads.

    Attributes:
        centre: (groups, 8) unit vectors, the groups' tastes on the first day.
        fit: (devices, formats) additive part of the click's logit.
    """

    def __init__(self, config: SyntheticConfig, seed: int) -> None:
        rng, of_users, of_ads = (np.random.default_rng([seed, i]) for i in range(3))
        self.config = config
        self.centre = _unit(rng.normal(size=(GROUPS, LATENT_DIM)))
        self.fit = rng.normal(0, 0.3, (DEVICES, FORMATS))
        turn = rng.normal(size=(GROUPS, LATENT_DIM))
        campaigns = _unit(rng.normal(size=(CAMPAIGNS, LATENT_DIM)))
        self.users = _draw_users(config.users, self.centre, turn, of_users)
        self.ads = _draw_ads(config, campaigns, of_ads)

    def tastes(self, user: Int64s, time: ArrayLike) -> Float64s:
        """Unit vectors u(t), (..., 8): they turn by `drift` radians over the log."""
        angle = self.config.drift * np.asarray(time)[..., None] / self.config.days
        start, turn = self.users.vector[user], self.users.turn[user]
        return np.asarray(np.cos(angle) * start + np.sin(angle) * turn)

    def truth(self, shown: Shown) -> Truth:
        """The law's expectations of impressions, (B,) each."""
        tastes = self.tastes(shown.user, shown.time)
        affinity = (tastes * self.ads.vector[shown.ad]).sum(axis=1)
        p_engagement = self.p_engagement(shown.ad, affinity)
        value = self.expected_value(shown.ad, p_engagement)
        return Truth(self.p_click(shown, affinity), p_engagement, value)

    def p_click(self, shown: Shown, affinity: Float64s) -> Float64s:
        """p(click) of rows with affinity u(t) . v; position 1 gives the relevance.

        Args:
            shown: the impressions.
            affinity: of each impression's user and ad, in the shape of the result.

        Examination by position: Craswell et al., WSDM 2008; its power law: Joachims et
        al., WSDM 2017.
        """
        logit = BIAS + self.config.affinity * affinity + evening(shown.time)
        logit += self.users.activity[shown.user] + self.ads.quality[shown.ad]
        logit += self.fit[shown.device, self.ads.format[shown.ad]]
        examined = np.asarray(shown.position, dtype=float) ** -self.config.position_bias
        return np.asarray(expit(logit) * examined)

    def p_engagement(self, ad: Int64s, affinity: Float64s) -> Float64s:
        """p(engagement | click)."""
        return np.asarray(expit(self.ads.depth[ad] + DEEPER * affinity))

    def expected_value(self, ad: Int64s, p_engagement: Float64s) -> Float64s:
        """E[value | click], in money."""
        return np.asarray(self.ads.price[ad] * (1 + LIFT * p_engagement))

    def true_top(
        self,
        users: Int64s,
        k: int,
        by: Literal["click", "value"] = "click",
        day: float = 0.0,
        device: int = 0,
    ) -> Int64s:
        """The k best ads of each user over the whole catalog, best first, (U, k).

        Args:
            users: (U,) their numbers.
            k: the number of ads for each.
            by: p(click), or p(click) * E[value | click]; both at position 1.
            day: days since the start; ads that are not yet born are left out.
            device: on which the ads are shown.

        Raises:
            DataError: fewer than `k` ads are born.
        """
        born = np.flatnonzero(self.ads.birth <= day)
        if not 1 <= k <= len(born):
            raise DataError(f"k is {k}, expected 1 to the {len(born)} ads on day {day}")
        # Some users at a time: the pairs of all users and ads need not fit the memory.
        step = max(CHUNK_CELLS // len(born), 1)
        chunks = (users[i : i + step] for i in range(0, len(users), step))
        tops = [_best(self.worth(u, born, by, day, device), k) for u in chunks]
        return born[np.concatenate(tops)] if tops else np.empty((0, k), dtype=np.int64)

    def worth(
        self, users: Int64s, ads: Int64s, by: str, day: float, device: int = 0
    ) -> Float64s:
        """The number that `true_top` orders by, for all pairs of users and ads, (U, N).

        Args:
            users: (U,) their numbers.
            ads: (N,) their numbers.
            by, day, device: see `true_top`.
        """
        one = np.ones(1, dtype=np.int64)
        pairs = Shown(users[:, None], ads[None], np.array([day]), one, one * device)
        # A matrix product, because broadcasting would hold (U, N, 8) numbers.
        affinity = self.tastes(users, day) @ self.ads.vector[ads].T
        worth = self.p_click(pairs, affinity)
        if by == "value":
            worth *= self.expected_value(ads, self.p_engagement(ads, affinity))
        return worth


def hour(time: Float64s) -> Int64s:
    """Hour of the day, 0 to 23."""
    return np.asarray(time * HOURS % HOURS, dtype=np.int64)


def evening(time: Float64s) -> Float64s:
    """Additive part of the click's logit, highest at 8 in the evening."""
    return EVENING * np.cos(2 * np.pi * (hour(time) - PEAK_HOUR) / HOURS)


def _draw_users(
    count: int, centre: Float64s, turn: Float64s, rng: np.random.Generator
) -> Users:
    group = rng.integers(GROUPS, size=count)
    vector = _around(centre[group], rng)
    # Without its part along the user's own vector, the turn is at right angles to it,
    # and the taste stays a unit vector whatever the angle.
    along = (turn[group] * vector).sum(axis=1, keepdims=True)
    across = _unit(turn[group] - along * vector)
    return Users(group, vector, across, rng.normal(0, 0.5, count))


def _draw_ads(
    config: SyntheticConfig, campaigns: Float64s, rng: np.random.Generator
) -> Ads:
    count = config.ads
    campaign = rng.integers(CAMPAIGNS, size=count)
    vector = _around(campaigns[campaign], rng)
    quality = rng.normal(0, 0.4, count)
    # Ads that bait clicks disappoint: a ranker of clicks alone then loses value.
    depth = rng.normal(-0.5, 0.6, count) - quality
    payer = rng.normal(0, 0.6, CAMPAIGNS)[campaign]
    price = np.exp(payer + rng.normal(0, 0.3, count))
    cohort = rng.integers(1, config.cohorts + 1, size=count)
    cohort[rng.random(count) >= config.cold_share] = 0
    cohort[0] = 0  # there is always an ad to show
    birth = config.days * cohort / (config.cohorts + 1)
    format_ = campaign % FORMATS
    return Ads(campaign, format_, vector, quality, depth, price, birth)


def _unit(vectors: Float64s) -> Float64s:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


def _around(centre: Float64s, rng: np.random.Generator) -> Float64s:
    return _unit(centre + rng.normal(0, SPREAD, centre.shape))


def _best(worth: Float64s, k: int) -> Int64s:
    """Columns of the k largest of each row, largest first."""
    best = np.argpartition(-worth, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(worth, best, 1), axis=1)
    return np.asarray(np.take_along_axis(best, order, axis=1))
