"""How often one caller may call."""

from sojourn_gateway.limits import MANY, Buckets

from .conftest import Gateway


def test_a_burst_then_the_rate_then_rest() -> None:
    """Two hundred at once, then a hundred a second; each caller for itself."""
    at = 0.0
    buckets = Buckets("caller", rate=100, burst=200, seconds=lambda: at)
    assert sum(buckets.take("ada")[1] for _ in range(250)) == 200
    left, passes = buckets.take("ada")
    assert (passes, left.wait) == (False, 1)
    assert left.headers["Retry-After"] == "1"
    assert buckets.take("ben")[1]
    at = 1.0
    assert sum(buckets.take("ada")[1] for _ in range(250)) == 100


def test_a_crowd_of_callers_is_forgotten() -> None:
    """Memory stays bounded, whoever calls."""
    buckets = Buckets("address", rate=20, burst=100, seconds=lambda: 0.0)
    for number in range(MANY + 2):
        buckets.take(str(number))
    assert len(buckets._buckets) <= MANY


async def test_the_limit_is_told_and_kept(gateway: Gateway) -> None:
    """Every answer says what is left; a refusal says when to come back; strangers have a smaller limit of their own."""
    async with gateway.client() as admin, gateway.client(None) as nobody:
        answers = [await admin.get("/me") for _ in range(3)]
        assert [answer.headers["ratelimit-policy"] for answer in answers] == ['"caller";q=200;w=2'] * 3
        gateway.at.house.parts.limits.callers._rate = 0.001
        for _ in range(200):
            answer = await admin.get("/policies")
        assert (answer.status_code, answer.json()["type"]) == (429, "/problems/rate-limited")
        assert int(answer.headers["retry-after"]) > 0
        assert answer.headers["ratelimit"].startswith('"caller";r=0;')
        gateway.at.house.parts.limits.strangers._rate = 0.001
        statuses = [(await nobody.get("/me")).status_code for _ in range(105)]
        assert (statuses[0], statuses[-1]) == (401, 429)
