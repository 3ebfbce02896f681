from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway import metrics
from gateway.metrics import PRIORITIES, PROCESS, TABLE, Counts, Histogram, Metrics, merge


def samples(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_every_count_is_in_the_table_once():
    assert sorted(entry.attribute for entry in TABLE) == sorted(item.name for item in fields(Counts))
    assert len({entry.name for entry in TABLE}) == len(TABLE)


def test_a_histogram_takes_a_value_on_a_bound_into_its_bucket():
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 3.0):
        histogram.observe(value)
    assert histogram.buckets() == [("1.0", 2), ("2.0", 4), ("+Inf", 5)]
    assert histogram.sum == 8.0


def test_a_clock_set_back_does_not_lower_a_sum():
    histogram = Histogram()
    histogram.observe(-5.0)
    assert histogram.sum == 0
    assert histogram.buckets()[0][1] == 1


def test_many_equal_observations_are_one_call():
    one, many = Histogram(), Histogram()
    for _ in range(8000):
        one.observe(0.25)
    many.observe(0.25, 8000)
    assert (one.buckets(), one.sum) == (many.buckets(), many.sum)


def test_what_was_counted_is_what_prometheus_reads():
    counting = Metrics()
    counts = counting.counts
    counts.acks += 3
    counts.delivered[0] += 2
    counts.closed[4409] += 1
    counts.events["duplicate"] += 5
    counts.to_socket[3].observe(0.004, 10)
    counts.group.observe(100)
    counts.tail_bytes = 4096
    counting.refresh.append(lambda: setattr(counts, "sessions", 7))
    read = samples(counting.render())
    assert read["vestnik_acks_total", ()] == 3
    assert read["vestnik_delivered_events_total", (("priority", "urgent"),)] == 2
    assert read["vestnik_delivered_events_total", (("priority", "bulk"),)] == 0
    assert read["vestnik_connections_closed_total", (("code", "4409"),)] == 1
    assert read["vestnik_intake_events_total", (("outcome", "duplicate"),)] == 5
    bulk = ("priority", "bulk")
    assert read["vestnik_commit_to_socket_seconds_bucket", (("le", "0.002"), bulk)] == 0
    assert read["vestnik_commit_to_socket_seconds_bucket", (("le", "0.005"), bulk)] == 10
    assert read["vestnik_commit_to_socket_seconds_count", (bulk,)] == 10
    assert read["vestnik_commit_to_socket_seconds_sum", (bulk,)] == pytest.approx(0.04)
    assert read["vestnik_append_group_events_count", ()] == 1
    assert (read["vestnik_tail_bytes", ()], read["vestnik_sessions", ()]) == (4096, 7)
    assert read["vestnik_process_resident_memory_bytes", ()] > 1_000_000


def test_two_gateways_in_one_process_do_not_mix():
    one, other = Metrics(), Metrics()
    one.counts.acks += 1
    assert samples(other.render())["vestnik_acks_total", ()] == 0


def test_the_names_are_the_documented_ones_and_pass_prometheus_parser():
    counting = Metrics()
    for item in fields(Counts):
        value = getattr(counting.counts, item.name)
        if isinstance(value, Counter):
            value["x"] += 1
    exposed = {name for name, _ in samples(counting.render())}
    page = Path(metrics.__file__).with_name("METRICS.md").read_text()
    assert page == metrics.document(), "run: python -m gateway.metrics > gateway/METRICS.md"
    documented = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    for name in exposed:
        base = name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
        assert name in documented or base in documented, name
        assert name.startswith("vestnik_")
    assert len(documented) == len(TABLE) + len(PROCESS)


def test_a_label_by_priority_has_one_value_for_each_priority():
    for entry in TABLE:
        if entry.label == "priority":
            assert len(getattr(Counts(), entry.attribute)) == len(PRIORITIES)


def test_several_processes_are_one_exposition_with_a_label() -> None:
    first, second = Metrics(), Metrics()
    first.counts.acks, second.counts.acks = 3, 4
    first.counts.closed[4409] = 2
    text = merge({"0": first.render(), "1": second.render(), "2": None}).decode()
    assert 'vestnik_acks_total{process="0"} 3.0' in text
    assert 'vestnik_acks_total{process="1"} 4.0' in text
    assert 'vestnik_connections_closed_total{process="0",code="4409"} 2.0' in text
    assert [f'vestnik_process_up{{process="{n}"}} {int(n < 2)}.0' in text for n in range(3)] == [True] * 3
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names)), "Prometheus refuses a metric with two heads"
    families = {family.name for family in text_string_to_metric_families(text)}
    assert {"vestnik_acks", "vestnik_process_up", "vestnik_intake_seconds"} <= families
