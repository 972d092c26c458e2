import pytest

from scm_jax.cost import collectives
from tests.multidevice import collective_programs

SQUARE = 256 * 256 * 2  # bytes of a weight of the programs, in 16 bits


@pytest.fixture(scope="module")
def programs():
    """What is read from the programs of tests/multidevice on eight devices."""
    return collective_programs.programs()


def row(kind, executions, received):
    counted = {"executions": executions, "received_bytes": received}
    return {"kind": kind, "dtype": "bf16", **counted}


@pytest.mark.parametrize("name, times", [("once", 1), ("scanned", 6), ("nested", 6)])
def test_sharded_layer_gathers_its_weight_and_scatters_its_gradient(
    programs, name, times
):
    # saved for the backward pass, so that one gather is enough
    received = times * SQUARE * 7 / 8
    assert programs[name]["rows"] == [
        row("all-gather", times, received),
        row("reduce-scatter", times, received),
    ]
    assert programs[name]["groups"] == [tuple(range(8))]


def test_copies_reduce_the_whole_gradient(programs):
    assert programs["copies"]["rows"] == [row("all-reduce", 1, 2 * SQUARE * 7 / 8)]


def test_two_copies_of_four_shards(programs):
    # the sum runs over all eight, the slice over four: not a plain reduce-scatter
    assert programs["hybrid"]["rows"] == [
        row("all-gather", 1, SQUARE * 3 / 4),
        row("all-reduce", 1, 2 * SQUARE * 7 / 8),
    ]
    assert programs["hybrid"]["groups"] == [tuple(range(4)), tuple(range(8))]


def test_loop_of_unknown_length_is_refused(programs):
    assert "unknown length" in programs["unknown"]


def test_a_compilation_cache_hides_nothing(tmp_path):
    first, second = collective_programs.twice_with_a_cache(tmp_path)
    assert first == second and first


# --- Text ---------------------------------------------------------------------------

PROGRAM = """\
HloModule small, num_partitions=8

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p = (s32[], f32[8,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,4]{1,0} get-tuple-element(%p), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %ar = f32[8,4]{1,0} all-reduce(%x), replica_groups={{0,1},{2,3},{4,5},{6,7}}
  ROOT %t = (s32[], f32[8,4]{1,0}) tuple(%next, %ar)
}

%condition (q: (s32[], f32[8,4])) -> pred[] {
  %q = (s32[], f32[8,4]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %end = s32[] constant(7)
  ROOT %less = pred[] compare(%j, %end), direction=LT
}

ENTRY %main (a: f32[8,4], b: bf16[16]) -> f32[8,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %b = bf16[16]{0} parameter(1)
  %two = s32[] constant(2)
  %start = (s32[], f32[8,4]{1,0}) tuple(%two, /*index=1*/%a)
  %loop = (s32[], f32[8,4]{1,0}) while(%start), condition=%condition, body=%body
  %g = bf16[64]{0} all-gather(%b), replica_groups=GROUPS, dimensions={0}
  %r = bf16[64]{0} all-reduce(%g), replica_groups=[2,4]<=[8], to_apply=%sum
  %moved = f32[64]{0} convert(%r)
  %zero = s32[] constant(0)
  %own = f32[16]{0} dynamic-slice(%moved, %two), dynamic_slice_sizes={16}
  USER
  %s = bf16[16]{0} reduce-scatter(%g), replica_groups=[2,4]<=[8], dimensions={0}
  %c = (f32[4]{0}, bf16[4]{0}) all-to-all(%own, %s), replica_groups=[1,8]<=[8]
  %m = bf16[16]{0} collective-permute(%s), source_target_pairs={{0,1},{1,0}}
  %alone = bf16[16]{0} all-reduce(%s), replica_groups=[8,1]<=[8], to_apply=%sum
  ROOT %out = f32[8,4]{1,0} get-tuple-element(%loop), index=1
}
"""


def read(groups="[2,4]<=[8]", user=""):
    text = PROGRAM.replace("GROUPS", groups).replace("  USER\n", user)
    return collectives.read_collectives(text)


def test_known_program():
    got = [
        (c.kind, c.dtype, c.whole_bytes, len(c.group), c.times, c.received_bytes)
        for c in read()
    ]
    assert sorted(got) == sorted(
        [
            ("all-reduce", "f32", 128, 2, 5, 5 * 128),  # counts from 2 to 7
            ("all-gather", "bf16", 128, 4, 1, 96),
            ("reduce-scatter", "bf16", 128, 4, 1, 96),  # an all-reduce, then sliced
            ("reduce-scatter", "bf16", 128, 4, 1, 96),
            ("all-to-all", "f32", 24, 8, 1, 21),
            ("collective-permute", "bf16", 32, 2, 1, 32),
        ]
    )


@pytest.mark.parametrize(
    "groups, expected",
    [
        ("{{0,1,2,3},{4,5,6,7}}", (0, 1, 2, 3)),
        ("{}", tuple(range(8))),
        ("[2,4]<=[8]", (0, 1, 2, 3)),
        ("[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("mesh['a'=2,'b'=4] {'b'}", (0, 1, 2, 3)),
        ("mesh['a'=2,'b'=4] {'a'}", (0, 4)),
        ("mesh['a'=2,'b'=4] {'a','b'}", tuple(range(8))),
        ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", (0, 1, 2, 3)),
        ("mesh['a'=2,'b'=2], device_ids=(3,2,1,0) {'b'}", (3, 2)),
        ("mesh['a'=8] {'a':(1)2}", (0, 4)),
        ("mesh['a'=8] {'a':(2)4}", (0, 1, 2, 3)),
    ],
)
def test_groups(groups, expected):
    (gather,) = [c for c in read(groups) if c.kind == "all-gather"]
    assert gather.group == expected


@pytest.mark.parametrize(
    "user",
    [
        "  %n = bf16[64]{0} negate(%r)\n",  # the whole sum is used
        "  %h = bf16[32]{0} dynamic-slice(%r, %two), dynamic_slice_sizes={32}\n",
        "  ROOT %n = bf16[64]{0} copy(%r)\n",
    ],
)
def test_all_reduce_stays_one_unless_only_shards_are_used(user):
    kinds = [c.kind for c in read(user=user) if c.received_bytes in (96, 192)]
    assert kinds.count("all-reduce") == 1


def test_summary_adds_up_by_kind_and_type():
    rows = collectives.summarize(read())
    assert [(r["kind"], r["dtype"]) for r in rows] == [
        ("all-gather", "bf16"),
        ("reduce-scatter", "bf16"),
        ("all-reduce", "f32"),
        ("all-to-all", "f32"),
        ("collective-permute", "bf16"),
    ]
    assert rows[1] == row("reduce-scatter", 2, 192)


def test_one_device_communicates_nothing():
    assert collectives.read_collectives("") == []
