"""Files that are refused or damaged: nothing is run, and the error names the place."""

import copyreg
import io
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from scm_jax.files.state_dict import UnsafePickleError, read_state_dict
from tests.exchange.torch_pickles import (
    FILES,
    GOLDEN,
    MAGIC,
    Call,
    Persistent,
    assert_same,
    dumps,
    legacy_stream,
    ramp,
    wrap_legacy,
    write,
    write_zip,
)

# Refusals. Each payload would touch a file; ``pickle.loads`` proves that it is alive.


def payloads(canary):
    """Name that is refused -> a pickle that calls it."""
    touch = f"touch {canary}"
    code = f"open({str(canary)!r}, 'w').close()"
    system = pickle.dumps(Call(os.system, touch), 0).split(b"\n")[0][1:].decode()
    text = pickle.BINUNICODE + len(touch).to_bytes(4, "little") + touch.encode()
    called = Call(getattr, Call(__import__, "os"), "system")  # a call that is called
    for protocol in range(6):
        yield f"{system}.system", pickle.dumps(Call(os.system, touch), protocol)
        yield "builtins.eval", pickle.dumps(Call(eval, code), protocol)
        yield "builtins.exec", pickle.dumps(Call(exec, code), protocol)
        inner = pickle.dumps(called, protocol)
        yield "builtins.getattr", inner[:-1] + text + b"\x85R."
    yield "os.system", b"cos\nsystem\n(" + text + b"tR."
    yield "os.system", b"\x80\x04\x8c\x02os\x8c\x06system\x93(" + text + b"tR."
    yield "os.system", b"(" + text + b"ios\nsystem\n."
    yield "os.system", b"(cos\nsystem\n" + text + b"o."
    call = Call(subprocess.check_call, ["touch", str(canary)])
    yield "subprocess.check_call", pickle.dumps({"state": [call]})
    # Names that only start like harmless ones.
    name = "torch.nn.modules.container"
    module = b"\x80\x04\x8c\x1a" + name.encode()
    yield f"{name}.os.system", module + b"\x8c\x09os.system\x93(" + text + b"tR."
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
            write_zip(tmp_path / "c.pt", content),
        ):
            with pytest.raises(UnsafePickleError, match="nothing .* executed") as info:
                read_state_dict(path)
            assert f" {name}," in str(info.value)
            assert str(path) in str(info.value)
            assert not canary.exists(), name
            count += 1
    assert count >= 90


@pytest.mark.parametrize("form", ["legacy", "zip"])
def test_a_call_in_the_bytes_of_a_storage_is_refused(form, nested, tmp_path):
    canary = tmp_path / "canary"
    call = pickle.dumps(Call(eval, f"open({str(canary)!r}, 'w')"), 2)
    inner = wrap_legacy(call)
    if form == "zip":
        inner = write_zip(tmp_path / "inner", call).read_bytes()
    path = write(tmp_path / "a.pkl", {"ema": {"w": nested(inner)}})
    with pytest.raises(UnsafePickleError, match=r" builtins\.eval, .*nothing"):
        read_state_dict(path)
    assert not canary.exists()


def test_a_file_in_a_file_in_a_file_is_refused(nested, tmp_path):
    inner = wrap_legacy(pickle.dumps(nested(b"").args[0], 2))
    path = write(tmp_path / "a.pkl", {"w": nested(inner)})
    with pytest.raises(UnsafePickleError, match=r"torch\.storage\._load_from_bytes"):
        read_state_dict(path)


def network_record(named, state):
    """Pickled as EDM pickles a network with these attributes."""
    reconstruct = named("torch_utils.persistence._reconstruct_persistent_obj")
    full = {"_parameters": {}, "_buffers": {}, "_modules": {}, **state}
    meta = {"type": "class", "module_src": "", "class_name": "Network", "state": full}
    return Call(reconstruct, meta)


def test_persistent_ids_lead_to_storages_only(named, rebuild, tmp_path):
    call = Call(eval, "1 / 0")
    storage = named("torch.FloatStorage")
    secret = write(tmp_path / "secret", b"0123")
    for message, *pid in [
        (r" builtins\.eval, ", "storage", call, "0", "cpu", 1),
        ("no storage of torch", "file", str(secret)),
        (r"storage of torch\.", "storage", "torch.FloatStorage", "0", "", 1),
    ]:
        state = {"w": Persistent(*pid)}
        for path in (
            write_zip(tmp_path / "a.pt", state),
            write(tmp_path / "b.pt", legacy_stream(state)),
        ):
            with pytest.raises(UnsafePickleError, match=message):
                read_state_dict(path)
    # A plain pickle has no storages.
    plain = dumps({"w": Persistent("storage", storage, "0", "cpu", 1)})
    for content in (plain, b"P0\n."):
        with pytest.raises(UnsafePickleError, match="persistent id"):
            read_state_dict(write(tmp_path / "a.pkl", content))
    # A key is the name of an entry of the archive, never a path.
    state = {"w": rebuild(0, (1,), (1,), key="../../secret", size=1)}
    with pytest.raises(ValueError, match=r"tensor 'w'.*secret"):
        read_state_dict(write_zip(tmp_path / "a.pt", state))


def test_what_reaches_outside_the_pickle_is_refused(tmp_path):
    copyreg.add_extension("os", "getpid", 0x7F)
    try:
        assert pickle.loads(b"\x80\x02\x82\x7f)R.") == os.getpid()
        path = write(tmp_path / "a.pkl", b"\x80\x02\x82\x7f)R.")
        with pytest.raises(UnsafePickleError, match="the extension 127 of this"):
            read_state_dict(path)
    finally:
        copyreg.remove_extension("os", "getpid", 0x7F)
    with pytest.raises(ValueError, match="out-of-band"):
        read_state_dict(write(tmp_path / "a.pkl", b"\x80\x05\x97."))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"\x80\x02X\x01\x00\x00\x00a)R.", "'str' object is not callable"),
        (b"\x80\x02ctorch\nFloatStorage\n}b.", "damaged"),
        (b"\x80\x02ctorch\nFloatStorage\n)RK\x00K\x00s.", "damaged"),
        (b"\x80\x04}]K\x00s.", "unhashable"),
        (b"\x80\x04K\x00K\x01\x93.", "requires str"),
        (b"\x80\x02h\x05.", "damaged"),
        (b"\x80\x02\xff.", "damaged"),
        (b"\x80\x02c_codecs\nencode\n(]X\x06\x00\x00\x00latin1tR.", "damaged"),
        (b"\x80\x02c_codecs\nencode\n(]X\x04\x00\x00\x00zlibtR.", "latin1"),
        (b"\x80\x04ctorch\nSize\n)}\x92.", "missing 1 required"),
    ],
)
def test_pickles_without_sense_are_value_errors(content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_state_dict(write(tmp_path / "a.pkl", content))


def test_depth_and_circles_end_in_errors_not_in_the_process(tmp_path):
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
        "import sys; from scm_jax.files import state_dict; "
        f"state_dict.read_state_dict({str(GOLDEN / 'network_half.pkl')!r}); "
        "print([m for m in sys.modules if m.split('.')[0] in "
        "('torch', 'torch_utils', 'dnnlib', 'safetensors')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def _archive(name):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, "hello")
    return file.getvalue()


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
        (b"", "starts with b''"),
        (b"<!DOCTYPE html>", "starts with b'<!DOCTYP': neither a file of torch.save"),
        (b"\x89PNG\r\n\x1a\n", "neither a file of torch.save"),
        (b"PK\x03\x04 and no archive", "zip archive is cut off or damaged"),
        (_archive("readme.txt"), "zip archive, but neither of torch.save"),
        (wrap_legacy(b"")[:30], "cut off"),
        (b"".join(pickle.dumps(p, 2) for p in (MAGIC, 1000, {}, 0)), "protocol"),
    ],
)
def test_other_content_says_what_it_is_not(content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_state_dict(write(tmp_path / "weights.pt", content))


def test_flipped_bytes_in_an_archive_are_noticed(tmp_path):
    content = bytearray((GOLDEN / "tensors.pt").read_bytes())
    start = content.index(ramp(2, 3, 2, 2).tobytes())
    content[start + 5] ^= 1
    path = write(tmp_path / "a.pt", bytes(content))
    with pytest.raises(ValueError, match=r"tensor 'conv\.weight': Bad CRC"):
        read_state_dict(path)


def read_view(rebuild, folder, *view, values=6, **declared):
    """A view of six numbers, read from a file of either kind."""
    state = {"fits": rebuild(0, (1,), (1,)), "w": rebuild(*view, **declared)}
    storages = [ramp(values).astype("<f4").tobytes()]
    zipped = read_state_dict(write_zip(folder / "a.pt", state, storages))["w"]
    if values == 6:
        path = write(folder / "b.pt", legacy_stream(state, [ramp(values)]))
        assert_same(read_state_dict(path)["w"], zipped)
    return zipped


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        ((0, (2, 3), (3, 1)), ramp(2, 3)),
        ((1, (5,), (1,)), ramp(6)[1:]),
        ((5, (2, 3), (0, 0)), np.full((2, 3), ramp(6)[5])),
        ((9, (0,), (1,)), ramp(0)),
        ((5, (), ()), ramp(6)[5]),
    ],
)
def test_a_tensor_is_a_view_of_its_storage(view, expected, rebuild, tmp_path):
    assert_same(read_view(rebuild, tmp_path, *view), expected)


@pytest.mark.parametrize(
    ("view", "declared", "message"),
    [
        ((1, (2, 3), (3, 1)), {}, "shape .* need 7 elements; "),
        ((0, (7,), (1,)), {}, "shape .* need 7 elements; "),
        ((0, (2, 2), (5, 1)), {}, "shape .* need 7 elements; "),
        ((6, (), ()), {}, "shape .* need 7 elements; "),
        ((0, (7,), (1,)), {"values": 7}, "shape .* need 7 elements; "),
        ((0, (6,), (1,)), {"values": 5}, ".* storage has 5 of the 6"),
        ((-1, (2,), (1,)), {}, "a size that is no whole"),
        ((0, (-2,), (1,)), {}, "a size that is no whole"),
        ((0, (2,), (-1,)), {}, "a size that is no whole"),
        ((0, (2.0,), (1,)), {}, "a size that is no whole"),
        ((0, (2, 3), (1,)), {}, r"shape \(2, 3\) with strides"),
        ((0, (1,), (1,)), {"key": "9"}, ".*data/9"),
    ],
)
def test_a_tensor_ends_where_its_storage_ends(
    view, declared, message, rebuild, tmp_path
):
    with pytest.raises(ValueError, match=f"tensor 'w': {message}"):
        read_view(rebuild, tmp_path, *view, **declared)


def test_a_legacy_storage_of_another_length_than_declared(rebuild, tmp_path):
    state = {"w": rebuild(0, (6,), (1,))}
    longer, whole, without, twice = (
        legacy_stream(state, [ramp(n) for n in sizes])
        for sizes in ([7], [6], [], [6] * 2)
    )
    for content, message in [
        (longer, "has 7 elements where its tensors expect 6"),
        (whole[:-1], "'w': the file is cut off"),
        (without, "tensor 'w': its storage is not in the file"),
        (twice, "list of storages is damaged"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_state_dict(write(tmp_path / "a.pt", content))


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


def test_a_lazily_negated_tensor_is_not_read_as_it_lies_there(rebuild, tmp_path):
    tensor = rebuild(0, (1,), (1,), {"neg": True})
    path = write_zip(tmp_path / "a.pt", {"w": tensor}, [b"0123"])
    with pytest.raises(ValueError, match="tensor 'w': it is a lazily negated"):
        read_state_dict(path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array([{"a": 1}, None], object), "array 'w': Object arrays"),
        (np.array(["text"]), "array 'w' is of dtype <U4"),
    ],
)
def test_arrays_that_are_no_weights_are_refused(array, message, tmp_path):
    path = write(tmp_path / "a.pkl", {"w": array})
    with pytest.raises(ValueError, match="tensor 'w': .*(bytes|dtype 'U4')"):
        read_state_dict(path)
    np.savez(tmp_path / "a.npz", w=array)
    with pytest.raises(ValueError, match=message):
        read_state_dict(tmp_path / "a.npz")
