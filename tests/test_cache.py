from sd_core.cache import LRU


def test_the_values_used_last_are_kept() -> None:
    cache: LRU[str, int] = LRU(2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (1, None, 3)
    assert len(cache) == cache.used == 2


def test_their_sizes_are_bounded_too() -> None:
    cache: LRU[str, str] = LRU(10, capacity=5, size=len)
    cache.put("a", "xx")
    cache.put("b", "xxx")
    assert cache.used == 5
    cache.put("b", "x")
    assert cache.used == 3
    cache.put("c", "xxxx")
    assert (cache.get("a"), cache.get("b"), cache.get("c"), cache.used) == (None, "x", "xxxx", 5)


def test_a_value_that_exceeds_the_capacity_replaces_nothing() -> None:
    cache: LRU[str, str] = LRU(10, capacity=5, size=len)
    cache.put("a", "xx")
    cache.put("b", "x" * 6)
    assert cache.get("a") == "xx" and cache.get("b") is None
    cache.put("a", "x" * 6)
    assert cache.get("a") is None and cache.used == 0


def test_it_can_be_cleared() -> None:
    cache: LRU[int, int] = LRU(4)
    cache.put(1, 1)
    cache.clear()
    assert len(cache) == cache.used == 0 and cache.get(1) is None
