"""Programs on eight simulated devices whose collectives are known by hand."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from scm_jax.cost import collectives
from tests.commands.in_process import jax_options
from tests.multidevice.eight import on_eight_devices

SIZE = 256  # every weight is (SIZE, SIZE)


def make_mesh(data, fsdp):
    return jax.make_mesh(
        (data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2
    )


def gathered(w, mesh):
    """Cast, then gathered in 16 bits; the barrier keeps that order."""
    w = jax.lax.optimization_barrier(w.astype(jnp.bfloat16))
    return jax.lax.with_sharding_constraint(w, NamedSharding(mesh, PartitionSpec()))


def layer(h, w, mesh):
    return jnp.tanh(h @ gathered(w, mesh))


def read(step, mesh, stack=(), spec=("fsdp",)):
    """Rows of one update ``step(w, x, mesh)``."""
    w = jax.ShapeDtypeStruct(
        (*stack, SIZE, SIZE),
        jnp.float32,
        sharding=NamedSharding(mesh, PartitionSpec(*(None,) * len(stack), *spec)),
    )
    batch = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    x = jax.ShapeDtypeStruct((16, SIZE), jnp.bfloat16, sharding=batch)
    jitted = jax.jit(lambda w, x: step(w, x, mesh), out_shardings=w.sharding)
    _, hlo = collectives.compile_partitioned(jitted.lower(w, x))
    found = collectives.read_collectives(hlo)
    groups = sorted({one.group for one in found if one.whole_bytes > SIZE})
    rows = [row for row in collectives.summarize(found) if row["received_bytes"] > SIZE]
    return {"rows": rows, "groups": groups}


def gradient_step(forward):
    def step(w, x, mesh):
        def loss(w):
            return jnp.mean(forward(w, x, mesh).astype(jnp.float32) ** 2)

        return w - jax.grad(loss)(w)

    return step


def once(w, x, mesh):
    return layer(x, w, mesh)


def scanned(w, x, mesh):
    return jax.lax.scan(lambda h, w: (layer(h, w, mesh), None), x, w)[0]


def nested(w, x, mesh):
    return jax.lax.scan(lambda h, w: (scanned(w, h, mesh), None), x, w)[0]


def unknown_length(w, x, mesh):
    return jax.lax.while_loop(
        lambda h: jnp.sum(h) < 1.0, lambda h: layer(h, w, mesh), x
    )


def plain(w, x, mesh):
    return jnp.tanh(x @ w.astype(jnp.bfloat16))


@on_eight_devices
def programs():
    """What is read from each."""
    wide, mixed = make_mesh(1, 8), make_mesh(2, 4)
    found = {
        "once": read(gradient_step(once), wide),
        "scanned": read(gradient_step(scanned), wide, (6,)),
        "nested": read(gradient_step(nested), wide, (3, 2)),
        "hybrid": read(gradient_step(once), mixed),
        "copies": read(gradient_step(plain), make_mesh(8, 1)),
    }
    try:
        read(lambda w, x, mesh: w + jnp.sum(unknown_length(w, x, mesh)), wide)
    except ValueError as error:
        found["unknown"] = str(error)
    return found


@on_eight_devices
def twice_with_a_cache(folder):
    """Rows of a program that JAX's compilation cache may hold the second time."""
    with jax_options(
        jax_enable_compilation_cache=True,
        jax_compilation_cache_dir=str(folder),
        jax_persistent_cache_min_compile_time_secs=0,
    ):
        return [read(gradient_step(once), make_mesh(1, 8))["rows"] for _ in range(2)]
