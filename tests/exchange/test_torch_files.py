"""Weights in files: exact values, refusals, damage, round trips.

The files of ``golden/torch/`` were written by PyTorch (``golden/make_torch_files.py``);
here PyTorch is neither needed nor imported.
"""

import copyreg
import io
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import types
import zipfile

import ml_dtypes
import numpy as np
import pytest

from scm_jax.files.state_dict import (
    UnsafePickleError,
    read_groups,
    read_state_dict,
    write_state_dict,
)

GOLDEN = pathlib.Path(__file__).parents[1] / "golden/torch"
FILES = sorted(path.name for path in GOLDEN.iterdir())
BFLOAT16 = ml_dtypes.bfloat16
MAGIC = 0x1950A86A20F9469CFC6C


def assert_same(got: np.ndarray, expected: np.ndarray) -> None:
    """Dtype, shape and every bit."""
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    assert got.tobytes() == expected.tobytes()


def ramp(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape) / 8 - 1


def golden_tensors():
    return {
        "conv.weight": ramp(2, 3, 2, 2),
        "float64": ramp(5).astype(np.float64) / 3,
        "float16": ramp(5).astype(np.float16),
        "bfloat16": ramp(2, 3).astype(BFLOAT16),
        "int64": np.array([-(2**40), 0, 2**40]),
        "int32": np.array([-7, 2**30], np.int32),
        "uint8": np.array([[0, 255]], np.uint8),
        "bool": np.array([True, False, True]),
        "transposed": ramp(2, 3).T,
        "transposed_bfloat16": ramp(2, 3).astype(BFLOAT16).T,
        "strided": ramp(4, 6)[1:4:2, 1::2],
        "shared.a": ramp(8)[:4],
        "shared.b": ramp(8)[2:],
        "expanded": np.full(3, 0.5, np.float32),
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
    }


def golden_network(dtype=np.float32):
    shapes = {
        "out_gain": (),
        "freqs": (3,),
        "enc.8x8_conv.weight": (4, 2, 3, 3),
        "enc.8x8_block.0.weight": (4,),
        "enc.8x8_block.0.bias": (4,),
        "dec.0.weight": (4, 4),
        "dec.0.gain": (),
        "dec.1.weight": (2, 2),
        "dec.1.gain": (),
        "out.weight": (1, 4),
        "out.bias": (1,),
    }
    return {
        name: ((np.arange(np.prod(shape)) + 10 * i) / 16).reshape(shape).astype(dtype)
        for i, (name, shape) in enumerate(shapes.items())
    }


class Call:
    """Pickled as a call of a function by name."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


class Persistent:
    """Pickled as a persistent id."""

    def __init__(self, *pid):
        self.pid = pid


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return value.pid if isinstance(value, Persistent) else None


@pytest.fixture
def named(monkeypatch):
    """Makes a function that pickle writes under any dotted name."""

    modules: dict[str, types.ModuleType] = {}

    def add_module(name):
        if name not in modules:
            modules[name] = types.ModuleType(name)
            monkeypatch.setitem(sys.modules, name, modules[name])
        return modules[name]

    def make(dotted):
        module_name, _, name = dotted.rpartition(".")
        add_module(module_name.partition(".")[0])
        module = add_module(module_name)
        if not hasattr(module, name):
            function = types.FunctionType((lambda: None).__code__, {}, name)
            function.__module__, function.__qualname__ = module_name, name
            setattr(module, name, function)
        return getattr(module, name)

    return make


@pytest.fixture
def rebuild(named):
    """Pickled as torch pickles a tensor, its storage of float32 numbers."""
    function = named("torch._utils._rebuild_tensor_v2")
    storage_type = named("torch.FloatStorage")

    def make(offset, shape, stride, *, key="0", size=6):
        storage = Persistent("storage", storage_type, key, "cpu", size)
        return Call(function, storage, offset, shape, stride, False, None)

    return make


def dumps(value, protocol=2):
    file = io.BytesIO()
    Pickler(file, protocol).dump(value)
    return file.getvalue()


def write_zip(path, value, storages=(), byteorder="little"):
    """A zip file as torch.save makes it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", dumps(value))
        archive.writestr("a/byteorder", byteorder)
        for key, content in enumerate(storages):
            archive.writestr(f"a/data/{key}", content)
        archive.writestr("a/version", "3\n")
    return path


def wrap_zip(path, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", content)
    return path


def wrap_legacy(content):
    """A stream as torch.save made it before 1.6, up to the pickled object."""
    head = [pickle.dumps(part, 2) for part in (MAGIC, 1001, {"little_endian": True})]
    return b"".join(head) + content


def legacy_stream(value, storages=()):
    """The whole stream; ``storages`` are float32 arrays."""
    keys = [str(key) for key in range(len(storages))]
    parts = [wrap_legacy(dumps(value)), pickle.dumps(keys, 2)]
    for array in storages:
        parts += [array.size.to_bytes(8, "little"), array.astype("<f4").tobytes()]
    return b"".join(parts)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
    return path


# Values.


@pytest.mark.parametrize("name", ["tensors.pt", "tensors_legacy.pt"])
def test_tensors_of_torch_have_their_values(name):
    state = read_state_dict(GOLDEN / name)
    expected = golden_tensors()
    assert list(state) == list(expected)
    for key in expected:
        assert_same(state[key], expected[key])
        assert state[key].flags.c_contiguous
        assert state[key].flags.writeable
    state["shared.a"][:] = 7
    assert_same(state["shared.b"], expected["shared.b"])


def test_safetensors_of_torch_have_their_values():
    state = read_state_dict(GOLDEN / "tensors.safetensors")
    expected = golden_tensors()
    assert sorted(state) == sorted(expected)
    for key in expected:
        assert_same(state[key], expected[key])
        assert state[key].flags.writeable


@pytest.mark.parametrize(
    "name, key, dtype",
    [
        ("network_protocol2.pkl", "", np.float32),
        ("network_protocol4.pkl", "", np.float32),
        ("network_protocol4.pkl", "ema", np.float32),
        ("network_half.pkl", "", np.float16),
        ("training_state.pt", "", np.float32),
        ("training_state.pt", "net", np.float32),
    ],
)
def test_a_pickled_network_has_the_names_and_values_of_its_state_dict(
    name, key, dtype, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    state = read_state_dict(GOLDEN / name, key=key)
    expected = golden_network(dtype)
    assert list(state) == list(expected)
    for entry in expected:
        assert_same(state[entry], expected[entry])
    # The source text in the pickle would have left a file of this name here.
    assert b"module_src_was_run" in (GOLDEN / name).read_bytes()
    assert not list(tmp_path.iterdir())


def test_a_whole_network_of_torch_layers_reads_like_its_state_dict():
    whole = read_state_dict(GOLDEN / "layers_legacy.pt")
    state = read_state_dict(GOLDEN / "model.pt")
    assert list(whole) == list(state)
    assert_same(whole["1.num_batches_tracked"], np.array(0))
    assert all(np.array_equal(whole[name], state[name]) for name in whole)


def test_the_format_is_seen_in_the_content_not_in_the_suffix(tmp_path):
    for number, name in enumerate(FILES):
        copy = tmp_path / f"weights_{number}.npz"
        shutil.copy(GOLDEN / name, copy)
        assert list(read_state_dict(copy)) == list(read_state_dict(GOLDEN / name))


@pytest.mark.parametrize("protocol", range(6))
def test_numpy_arrays_in_a_pickle(protocol, tmp_path):
    state = {
        "by_rows": ramp(2, 3),
        "by_columns": np.asfortranarray(ramp(2, 3).astype(np.float64)),
        "big_endian": ramp(4).astype(">f4"),
        "number": np.float32(2.5),
        "bool": np.array([True, False]),
        "none": np.zeros((0, 2), np.int64),
    }
    path = write(tmp_path / "a.pkl", pickle.dumps(state, protocol))
    for name, array in read_state_dict(path).items():
        native = np.asarray(state[name]).dtype.newbyteorder("=")
        assert_same(array, np.asarray(state[name], native))


def test_groups_of_arrays_and_values(tmp_path):
    """What files of statistics are; keys that are no text become text."""
    file = tmp_path / "a.pkl"
    array = np.arange(6.0).reshape(2, 3).T
    top = {"n": 5, "m": np.int64(7), "list": [1], 3: {"x": array, 4: None}}
    file.write_bytes(pickle.dumps(top))
    found = read_groups(file)
    assert (found["n"], found["m"], found["list"]) == (5, 7, [1])
    assert_same(found["3"]["x"], np.ascontiguousarray(array))
    assert found["3"]["4"] is None
    file.write_bytes(pickle.dumps({"x": {"y": np.array([object])}}))
    with pytest.raises(ValueError, match=r"a\.pkl"):
        read_groups(file)


def test_numbers_of_a_big_endian_machine(rebuild, tmp_path):
    content = ramp(6).astype(">f4").tobytes()
    state = {"w": rebuild(1, (2, 2), (1, 2))}
    path = write_zip(tmp_path / "a.pt", state, [content], byteorder="big")
    assert_same(read_state_dict(path)["w"], ramp(6)[1:5].reshape(2, 2).T)
    path = write_zip(tmp_path / "a.pt", state, [content], byteorder="middle")
    with pytest.raises(ValueError, match="byte order 'middle'"):
        read_state_dict(path)


def test_a_legacy_storage_that_is_part_of_another(rebuild, tmp_path):
    tensor = rebuild(1, (2,), (1,))
    tensor.args[0].pid += (("view", 3, 3),)
    path = write(tmp_path / "a.pt", legacy_stream({"w": tensor}, [ramp(6)]))
    assert_same(read_state_dict(path)["w"], ramp(6)[4:])


@pytest.mark.parametrize("form", ["legacy", "zip"])
def test_a_storage_in_a_pickle_is_a_file_of_either_kind(form, named, rebuild, tmp_path):
    storage = rebuild(0, (), ()).args[0]
    inner = legacy_stream(storage, [ramp(6)])
    if form == "zip":
        content = ramp(6).astype("<f4").tobytes()
        inner = write_zip(tmp_path / "inner", storage, [content]).read_bytes()
    function = named("torch._utils._rebuild_tensor_v2")
    load = named("torch.storage._load_from_bytes")
    tensor = Call(function, Call(load, inner), 1, (2, 2), (1, 2), False, None)
    path = write(tmp_path / "a.pkl", {"ema": {"w": tensor}})
    assert_same(read_state_dict(path)["w"], ramp(6)[1:5].reshape(2, 2).T)
    for length in range(0, len(inner), 9):
        broken = Call(function, Call(load, inner[:length]), 0, (1,), (1,))
        write(path, {"ema": {"w": broken}})
        with pytest.raises(ValueError, match=r"a\.pkl.*tensor 'w'"):
            read_state_dict(path)


def test_a_storage_that_is_none(named, tmp_path):
    function = named("torch._utils._rebuild_tensor_v2")
    load = named("torch.storage._load_from_bytes")
    for storage, message in [
        (Call(load, "text"), "bytes of a storage that are a str"),
        (Call(load, pickle.dumps(3)), "a storage that is a int"),
        (Call(load, wrap_legacy(pickle.dumps(3) + pickle.dumps([]))), "is a int"),
        (Call(named("torch.FloatStorage")), r"is an object of torch\.FloatStorage"),
        (named("torch.FloatStorage"), r"is an object of torch\.FloatStorage"),
    ]:
        tensor = Call(function, storage, 0, (1,), (1,), False, None)
        path = write(tmp_path / "a.pkl", {"w": tensor})
        with pytest.raises(ValueError, match=f"tensor 'w': a?.*{message}"):
            read_state_dict(path)


def test_an_empty_state_dict(tmp_path):
    for suffix in (".npz", ".safetensors"):
        write_state_dict(tmp_path / f"a{suffix}", {})
        assert read_state_dict(tmp_path / f"a{suffix}") == {}


# Refusals. Each payload would touch a file; ``pickle.loads`` proves that it is alive.


def payloads(canary):
    """Name that is refused -> a pickle that calls it."""
    touch = f"touch {canary}"
    code = f"open({str(canary)!r}, 'w').close()"
    system = pickle.dumps(Call(os.system, touch), 0).split(b"\n")[0][1:].decode()
    text = pickle.BINUNICODE + len(touch).to_bytes(4, "little") + touch.encode()
    getattr_chain = Call(
        Call(getattr, Call(__import__, "os"), "system"),  # what is called is a call
        touch,
    )
    for protocol in range(6):
        yield f"{system}.system", pickle.dumps(Call(os.system, touch), protocol)
        yield "builtins.eval", pickle.dumps(Call(eval, code), protocol)
        yield "builtins.exec", pickle.dumps(Call(exec, code), protocol)
        inner = pickle.dumps(getattr_chain.function, protocol)
        yield "builtins.getattr", inner[:-1] + text + b"\x85R."
    yield "os.system", b"cos\nsystem\n(" + text + b"tR."
    yield "os.system", b"\x80\x04\x8c\x02os\x8c\x06system\x93(" + text + b"tR."
    yield "os.system", b"(" + text + b"ios\nsystem\n."
    yield "os.system", b"(cos\nsystem\n" + text + b"o."
    yield (
        "subprocess.check_call",
        pickle.dumps({"state": [Call(subprocess.check_call, ["touch", str(canary)])]}),
    )
    # A name that only starts like a harmless one.
    yield (
        "torch.nn.modules.container.os.system",
        b"\x80\x04\x8c\x1atorch.nn.modules.container\x8c\x09os.system\x93("
        + text
        + b"tR.",
    )
    yield (
        "torch.nn.modulesque.system",
        b"ctorch.nn.modulesque\nsystem\n(" + text + b"tR.",
    )


def test_what_a_pickle_would_call_is_refused_by_name(tmp_path):
    canary = tmp_path / "canary"
    count = 0
    for name, content in payloads(canary):
        if not name.startswith("torch"):
            pickle.loads(content)
            assert canary.exists(), name
            canary.unlink()
        for path in (
            write(tmp_path / "a.pkl", content),
            write(tmp_path / "b.pt", wrap_legacy(content)),
            wrap_zip(tmp_path / "c.pt", content),
        ):
            with pytest.raises(UnsafePickleError, match="nothing .* executed") as info:
                read_state_dict(path)
            assert f" {name}," in str(info.value)
            assert str(path) in str(info.value)
            assert not canary.exists(), name
            count += 1
    assert count >= 90


@pytest.mark.parametrize("form", ["legacy", "zip"])
def test_a_call_in_the_bytes_of_a_storage_is_refused(form, named, tmp_path):
    canary = tmp_path / "canary"
    call = pickle.dumps(Call(eval, f"open({str(canary)!r}, 'w')"), 2)
    inner = wrap_legacy(call)
    if form == "zip":
        inner = wrap_zip(tmp_path / "inner", call).read_bytes()
    storage = Call(named("torch.storage._load_from_bytes"), inner)
    rebuild = named("torch._utils._rebuild_tensor_v2")
    tensor = Call(rebuild, storage, 0, (1,), (1,), False, None)
    path = write(tmp_path / "a.pkl", {"ema": {"w": tensor}})
    with pytest.raises(UnsafePickleError, match=r" builtins\.eval, .*nothing"):
        read_state_dict(path)
    assert not canary.exists()


def test_a_file_in_a_file_in_a_file_is_refused(named, tmp_path):
    load = named("torch.storage._load_from_bytes")
    rebuild = named("torch._utils._rebuild_tensor_v2")
    inner = wrap_legacy(pickle.dumps(Call(load, b""), 2))
    tensor = Call(rebuild, Call(load, inner), 0, (1,), (1,), False, None)
    path = write(tmp_path / "a.pkl", {"w": tensor})
    with pytest.raises(UnsafePickleError, match=r"torch\.storage\._load_from_bytes"):
        read_state_dict(path)


def network_record(named, state):
    """Pickled as EDM pickles a network with these attributes."""
    reconstruct = named("torch_utils.persistence._reconstruct_persistent_obj")
    full = {"_parameters": {}, "_buffers": {}, "_modules": {}, **state}
    meta = {"type": "class", "module_src": "", "class_name": "Network", "state": full}
    return Call(reconstruct, meta)


def test_a_call_among_the_attributes_of_a_network_is_refused(named, tmp_path):
    canary = tmp_path / "canary"
    call = Call(exec, f"open({str(canary)!r}, 'w')")
    for state in ({"activation": call}, {"_parameters": {"w": call}}):
        path = write(tmp_path / "a.pkl", {"ema": network_record(named, state)})
        with pytest.raises(UnsafePickleError, match=r" builtins\.exec, "):
            read_state_dict(path)
    assert not canary.exists()


def test_persistent_ids_lead_to_storages_only(named, rebuild, tmp_path):
    canary = tmp_path / "canary"
    call = Call(eval, f"open({str(canary)!r}, 'w')")
    storage = named("torch.FloatStorage")
    secret = write(tmp_path / "secret", b"0123")
    refused = {
        r" builtins\.eval, ": Persistent("storage", call, "0", "cpu", 1),
        "no storage of torch": Persistent("file", str(secret)),
        r"storage of torch\.": Persistent("storage", "torch.FloatStorage", "0", "", 1),
    }
    for message, value in refused.items():
        for write_file in (
            lambda path, value: write_zip(path, {"w": value}),
            lambda path, value: write(path, legacy_stream({"w": value})),
        ):
            with pytest.raises(UnsafePickleError, match=message):
                read_state_dict(write_file(tmp_path / "a.pt", value))
    # A plain pickle has no storages.
    plain = dumps({"w": Persistent("storage", storage, "0", "cpu", 1)})
    for content in (plain, b"P0\n."):
        with pytest.raises(UnsafePickleError, match="persistent id"):
            read_state_dict(write(tmp_path / "a.pkl", content))
    # A key is the name of an entry of the archive, never a path.
    state = {"w": rebuild(0, (1,), (1,), key="../../secret", size=1)}
    with pytest.raises(ValueError, match=r"tensor 'w'.*secret"):
        read_state_dict(write_zip(tmp_path / "a.pt", state))
    assert not canary.exists()


def test_opcodes_that_reach_outside_the_pickle_are_refused(tmp_path):
    copyreg.add_extension("os", "getpid", 0x7F)
    try:
        assert pickle.loads(b"\x80\x02\x82\x7f)R.") == os.getpid()
        path = write(tmp_path / "a.pkl", b"\x80\x02\x82\x7f)R.")
        with pytest.raises(UnsafePickleError, match="the opcode EXT1"):
            read_state_dict(path)
    finally:
        copyreg.remove_extension("os", "getpid", 0x7F)
    with pytest.raises(UnsafePickleError, match="the opcode NEXT_BUFFER"):
        read_state_dict(write(tmp_path / "a.pkl", b"\x80\x05\x97."))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"\x80\x02X\x01\x00\x00\x00a)R.", "'str' object is not callable"),
        (b"\x80\x02])R.", "'list' object is not callable"),
        (b"\x80\x02ctorch\nSize\n]R.", "argument list must be a tuple"),
        (b"\x80\x02ctorch\nFloatStorage\n}b.", "damaged"),
        (b"\x80\x02ctorch\nFloatStorage\nK\x00a.", "damaged"),
        (b"\x80\x02ctorch\nFloatStorage\n)RK\x00K\x00s.", "damaged"),
        (b"\x80\x04K\x00(K\x00\x90.", "damaged"),
        (b"\x80\x04}]K\x00s.", "unhashable"),
        (b"\x80\x04\x8f(}\x90.", "unhashable"),
        (b"\x80\x04K\x00K\x01\x93.", "requires str"),
        (b"\x80\x02K\x00K\x01.", "too many values"),
        (b"\x80\x02h\x05.", "damaged"),
        (b"\x80\x020.", "damaged"),
        (b"\x80\x02K\x00\x86.", "TUPLE2 takes more than the stack holds"),
        (b"\x80\x02\xff.", "unknown"),
        (b"\x80\x02c_codecs\nencode\n(]X\x06\x00\x00\x00latin1tR.", "damaged"),
        (b"\x80\x02c_codecs\nencode\n(]X\x04\x00\x00\x00zlibtR.", "latin1"),
        (b"\x80\x04ctorch\nSize\n)}\x92.", "missing 1 required"),
    ],
)
def test_pickles_without_sense_are_value_errors(content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_state_dict(write(tmp_path / "a.pkl", content))


def test_depth_and_circles_end_in_errors_not_in_the_process(tmp_path):
    deep = 300_000
    key = b"\x80\x02})" + b"\x85" * deep + b"K\x00s."
    with pytest.raises(ValueError, match="tuples nested deeper than 1000"):
        read_state_dict(write(tmp_path / "a.pkl", key))
    parameter = b"ctorch._utils\n_rebuild_parameter\n"
    chain = parameter * 50_000 + b"K\x00" + b"\x85R" * 50_000
    state = b"\x80\x02}X\x01\x00\x00\x00w" + chain + b"s."
    with pytest.raises(ValueError, match="tensor 'w': it is a int, no tensor"):
        read_state_dict(write(tmp_path / "a.pkl", state))
    # A network that holds itself: the dict is filled after the call that makes it.
    content = (
        b"\x80\x02ctorch_utils.persistence\n_reconstruct_persistent_obj\n"
        b"}X\x05\x00\x00\x00state}(X\x0b\x00\x00\x00_parameters}"
        b"X\x08\x00\x00\x00_modules}q\x00us\x85Rq\x01"
        b"h\x00X\x04\x00\x00\x00selfh\x01s0."
    )
    with pytest.raises(ValueError, match="nested deeper than 100 levels"):
        read_state_dict(write(tmp_path / "a.pkl", content))


def test_nothing_of_torch_and_no_safetensors_is_imported():
    code = (
        "import sys; from scm_jax.files import state_dict as torch_files; "
        f"torch_files.read_state_dict({str(GOLDEN / 'network_half.pkl')!r}); "
        "print([m for m in sys.modules if m.split('.')[0] in "
        "('torch', 'torch_utils', 'dnnlib', 'safetensors')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


# Damage.


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_was_cut_off_is_a_value_error_with_its_name(name, tmp_path):
    content = (GOLDEN / name).read_bytes()
    path = tmp_path / name
    for length in [*range(0, len(content), len(content) // 60), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=name):
            read_state_dict(path)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html>", "starts with b'<!DOCTYP': neither a file of torch.save"),
        (b"\x89PNG\r\n\x1a\n", "neither a file of torch.save"),
        (b"PK\x03\x04 and no archive", "zip archive is cut off or damaged"),
        (wrap_legacy(b"")[:30], "cut off"),
        (b"".join(pickle.dumps(p, 2) for p in (MAGIC, 1000, {}, 0)), "protocol"),
    ],
)
def test_other_content_says_what_it_is_not(content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_state_dict(write(tmp_path / "weights.pt", content))


def test_an_archive_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match="zip archive, but neither of torch.save"):
        read_state_dict(tmp_path / "a.zip")


def test_flipped_bytes_in_an_archive_are_noticed(tmp_path):
    content = bytearray((GOLDEN / "tensors.pt").read_bytes())
    start = content.index(ramp(2, 3, 2, 2).tobytes())
    content[start + 5] ^= 1
    path = write(tmp_path / "a.pt", bytes(content))
    with pytest.raises(ValueError, match=r"tensor 'conv\.weight': Bad CRC"):
        read_state_dict(path)


def test_a_tensor_ends_where_its_storage_ends(rebuild, tmp_path):
    def read(*view, values=6, **declared):
        state = {"fits": rebuild(0, (1,), (1,)), "w": rebuild(*view, **declared)}
        storages = [ramp(values).astype("<f4").tobytes()]
        zipped = read_state_dict(write_zip(tmp_path / "a.pt", state, storages))["w"]
        legacy = legacy_stream(state, [ramp(values)])
        if values == 6:
            path = write(tmp_path / "b.pt", legacy)
            assert_same(read_state_dict(path)["w"], zipped)
        return zipped

    assert_same(read(0, (2, 3), (3, 1)), ramp(2, 3))
    assert_same(read(1, (5,), (1,)), ramp(6)[1:])
    assert_same(read(5, (2, 3), (0, 0)), np.full((2, 3), ramp(6)[5]))
    assert_same(read(9, (0,), (1,)), ramp(0))
    assert_same(read(5, (), ()), ramp(6)[5])
    for view in [
        (1, (2, 3), (3, 1)),
        (0, (7,), (1,)),
        (0, (2, 2), (5, 1)),
        (6, (), ()),
    ]:
        with pytest.raises(ValueError, match="tensor 'w': shape .* need 7 elements; "):
            read(*view)
    with pytest.raises(ValueError, match="need 6 elements; its storage has 5 of the 6"):
        read(0, (6,), (1,), values=5)
    for view in [
        (-1, (2,), (1,)),
        (0, (-2,), (1,)),
        (0, (2,), (-1,)),
        (0, (2.0,), (1,)),
    ]:
        with pytest.raises(ValueError, match="tensor 'w': a size that is no whole"):
            read(*view)
    with pytest.raises(ValueError, match=r"tensor 'w': shape \(2, 3\) with strides"):
        read(0, (2, 3), (1,))
    with pytest.raises(ValueError, match="tensor 'w'.*data/9"):
        read(0, (1,), (1,), key="9")


def test_a_legacy_storage_of_another_length_than_declared(rebuild, tmp_path):
    state = {"w": rebuild(0, (6,), (1,))}
    for values, message in [(7, "has 7 elements where its tensors expect 6")]:
        path = write(tmp_path / "a.pt", legacy_stream(state, [ramp(values)]))
        with pytest.raises(ValueError, match=message):
            read_state_dict(path)
    path = write(tmp_path / "a.pt", legacy_stream(state, [ramp(6)])[:-1])
    with pytest.raises(ValueError, match="cut off: storage '0' ends at byte"):
        read_state_dict(path)
    path = write(tmp_path / "a.pt", legacy_stream(state))
    with pytest.raises(ValueError, match="tensor 'w': its storage is not in the file"):
        read_state_dict(path)
    path = write(tmp_path / "a.pt", legacy_stream(state, [ramp(6), ramp(6)]))
    with pytest.raises(ValueError, match="list of storages is damaged"):
        read_state_dict(path)


def test_what_is_no_tensor_in_a_network_is_named(named, tmp_path):
    text = {"_modules": {"block": network_record(named, {"_parameters": {"w": "x"}})}}
    child = {"_modules": {"block": 3}}
    names = {"_buffers": {1: None}}
    plain = {"_parameters": {"w": {}}, "_non_persistent_buffers_set": 3}
    for state, message in [
        (text, r"tensor 'block\.w': it is a str, no tensor"),
        (child, "module 'block' is a int, no module"),
        (plain, "tensor 'w': it is a dict of 0, no tensor"),
        (names, "_buffers is no dict of names"),
    ]:
        path = write(tmp_path / "a.pkl", {"ema": network_record(named, state)})
        with pytest.raises(ValueError, match=message):
            read_state_dict(path)


def test_a_lazily_negated_tensor_is_not_read_as_it_lies_there(named, tmp_path):
    rebuild = named("torch._utils._rebuild_tensor_v2")
    storage = Persistent("storage", named("torch.FloatStorage"), "0", "cpu", 1)
    tensor = Call(rebuild, storage, 0, (1,), (1,), False, None, {"neg": True})
    path = write_zip(tmp_path / "a.pt", {"w": tensor}, [b"0123"])
    with pytest.raises(ValueError, match="tensor 'w': it is a lazily negated"):
        read_state_dict(path)


def test_object_arrays_are_refused(tmp_path):
    array = np.array([{"a": 1}, None], object)
    path = write(tmp_path / "a.pkl", {"w": array})
    with pytest.raises(ValueError, match="tensor 'w': .*bytes"):
        read_state_dict(path)
    np.savez(tmp_path / "a.npz", w=array)
    with pytest.raises(ValueError, match="array 'w': Object arrays"):
        read_state_dict(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", w=np.array(["text"]))
    with pytest.raises(ValueError, match="array 'w' is of dtype <U4"):
        read_state_dict(tmp_path / "b.npz")


# Which entry holds the weights.

ONE, TWO = {"w": ramp(2)}, {"v": ramp(3)}


@pytest.mark.parametrize(
    "top, key, expected",
    [
        (ONE, "", "w"),
        ({"net": ONE, "ema": TWO}, "", "v"),
        ({"net": ONE, "ema": TWO}, "net", "w"),
        ({"model": ONE, "state_dict": TWO}, "", "v"),
        ({"model": ONE, "epoch": 3}, "", "w"),
        ({"state_dict": ONE, "net": TWO}, "", "v"),
        # What does not fit is passed over: EDM2 keeps its averages in lists.
        ({"ema": {"stds": [0.1], "emas": [TWO]}, "net": ONE}, "", "w"),
        ({"ema": None, "net": ONE}, "", "w"),
        ({"ema": {}, "net": ONE}, "", "w"),
        ({"ema": TWO, "teacher": ONE}, "teacher", "w"),
    ],
)
def test_key_chooses_the_entry(top, key, expected, tmp_path):
    state = read_state_dict(write(tmp_path / "a.pkl", top), key=key)
    assert list(state) == [expected]


@pytest.mark.parametrize(
    "top, key, message",
    [
        ({"a": ONE, "b": 3}, "", r"key.* 'a' \(a dict of 1\), 'b' \(a int\)\. Choose"),
        ({"ema": ONE}, "net", r"no key 'net'; its keys are 'ema' \(a dict of 1\)"),
        ({"ema": ONE, "b": 3}, "b", "'b' is a int, neither a state dict nor a network"),
        ({"w": ramp(2), "step": 3}, "", r"'w' \(a tensor\), 'step' \(a int\)"),
        ([ONE], "", "the file holds a list"),
        (ramp(2), "", "the file holds a tensor"),
        (ramp(2), "ema", "no key 'ema'; the file holds a tensor"),
        ({str(i): i for i in range(50)}, "", "'19' .* and 30 more"),
    ],
)
def test_a_key_that_does_not_fit_lists_what_there_is(top, key, message, tmp_path):
    path = write(tmp_path / "a.pkl", top)
    with pytest.raises(ValueError, match=message) as info:
        read_state_dict(path, key=key)
    assert str(path) in str(info.value)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_flat_formats_have_no_entries(suffix, tmp_path):
    write_state_dict(tmp_path / f"a{suffix}", ONE)
    with pytest.raises(ValueError, match="no key 'w': the format holds one state"):
        read_state_dict(tmp_path / f"a{suffix}", key="w")


# Written and read again.

DTYPES = {
    np.dtype(dtype).name: np.dtype(dtype)
    for dtype in (
        *(np.float32, np.float64, np.float16, BFLOAT16),
        *(np.int64, np.int32, np.int16, np.int8, np.uint8, np.bool_),
    )
}


def any_bits(dtype, *shape):
    """Every value of a dtype is as likely as any other: NaN, infinity, -0 too."""
    if dtype == np.bool_:
        return np.random.default_rng(0).random(shape) < 0.5
    count = int(np.prod(shape)) * dtype.itemsize
    return np.frombuffer(np.random.default_rng(0).bytes(count), dtype).reshape(shape)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_written_and_read_again_bit_for_bit(suffix, dtype, tmp_path):
    state = {
        "enc.8x8_conv.weight": any_bits(dtype, 3, 2, 2),
        "transposed": any_bits(dtype, 3, 4).T,
        "strided": any_bits(dtype, 6, 6)[1::2, ::3],
        "backwards": any_bits(dtype, 5)[::-1],
        "one_of_backwards": any_bits(dtype, 5)[::-1][:1],
        "scalar": any_bits(dtype),
        "empty": any_bits(dtype, 0, 3),
        "file": any_bits(dtype, 1),
        "x": any_bits(dtype, 2),
        "x.npy": any_bits(dtype, 3),
        "größe/λ": any_bits(dtype, 2),
    }
    path = tmp_path / f"a{suffix}"
    if suffix == ".npz" and dtype == BFLOAT16:
        with pytest.raises(
            ValueError, match="is of dtype bfloat16, which npz does not"
        ):
            write_state_dict(path, state)
        assert not list(tmp_path.iterdir())
        return
    write_state_dict(path, state)
    again = read_state_dict(path)
    assert sorted(again) == sorted(state)
    for name in state:
        assert_same(again[name], state[name])
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_order_of_bytes_and_of_names_is_kept(tmp_path):
    state = {"z": ramp(3).astype(">f4"), "a": np.complex64([1 + 2j]), "m": 2.5}
    path = tmp_path / "a.npz"
    write_state_dict(path, state)
    again = read_state_dict(path)
    assert list(again) == list(state)
    assert_same(again["z"], ramp(3))
    assert_same(again["m"], np.array(2.5))
    first = path.read_bytes()
    write_state_dict(path, state)
    assert path.read_bytes() == first


def test_npz_is_read_by_numpy_and_numpys_is_read_here(tmp_path):
    write_state_dict(tmp_path / "a.npz", {"net.w": ramp(2, 3), "file": ramp(1)})
    with np.load(tmp_path / "a.npz", allow_pickle=False) as loaded:
        assert_same(loaded["net.w"], ramp(2, 3))
        assert_same(loaded["file"], ramp(1))
    columns = np.asfortranarray(ramp(2, 3)).astype(">f4")
    np.savez_compressed(tmp_path / "b.npz", w=columns)
    array = read_state_dict(tmp_path / "b.npz")["w"]
    assert_same(array, ramp(2, 3))
    assert array.flags.c_contiguous


@pytest.mark.parametrize(
    "name, state, message",
    [
        ("a.pt", ONE, "must be one of .safetensors, .npz; PyTorch reads .safetensors"),
        ("a.npz", {"w": np.array(["x"])}, "'w' is of dtype <U1; legal are float32"),
        ("a.npz", {"w": np.zeros(1, np.uint16)}, "'w' is of dtype uint16"),
        ("a.npz", {"": ramp(1)}, "the name '' is no text"),
        ("a.npz", {3: ramp(1)}, "the name 3 is no text"),
        ("a.npz", {"a\0b": ramp(1)}, "no text without a zero byte"),
        ("a.safetensors", {"__metadata__": ramp(1)}, "'__metadata__' is not a name"),
    ],
)
def test_what_cannot_be_written_is_named_and_leaves_the_old_file(
    name, state, message, tmp_path
):
    old = write(tmp_path / name, b"old")
    with pytest.raises(ValueError, match=message):
        write_state_dict(old, state)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


def test_all_formats_leave_the_rights_of_an_ordinary_file(tmp_path):
    modes = set()
    for suffix in (".npz", ".safetensors"):
        write_state_dict(tmp_path / f"a{suffix}", ONE)
        modes.add((tmp_path / f"a{suffix}").stat().st_mode)
    (tmp_path / "plain").touch()
    assert modes == {(tmp_path / "plain").stat().st_mode}


def test_golden_files_are_small():
    assert len(FILES) == 9
    assert sum((GOLDEN / name).stat().st_size for name in FILES) < 60_000
