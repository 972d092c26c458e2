"""Spoken digits, 0.5 seconds at 8 kHz: words in two steps.

Run:
  python -m scm_jax train --config=experiments/spoken_digits.py:teacher \\
    --workdir=runs/spoken_digits_teacher
  python -m scm_jax train --config=experiments/spoken_digits.py:scd \\
    --workdir=runs/spoken_digits_scd
  python -m scm_jax train --config=experiments/spoken_digits.py:sct \\
    --workdir=runs/spoken_digits_sct
  python -m scm_jax sample --run=runs/spoken_digits_scd --num=10 --out=digits.wav

Expect (digit accuracy after the way back to sound; real clips, of voices that no
training clip has, 0.998; one CPU core each, seed 0):
  teacher  32 Heun steps, guidance 2: 1.00 (100 clips); 16 min
  scd      1 step 0.997, 2 steps 1.000 (guidance 2, 1,000 clips); 18 min
  say=numbers, whole sequences, seen and held out: teacher, guidance 2: 1.000, 1.000
           (50 clips of each); scd, 2 steps, guidance 2: 0.986, 0.986 (500);
           43 min of processor time for scd
  sct      1 step 0.974, 2 steps 0.973 (guidance 1); 12 min
  other front ends: not yet measured

A transformer on log-mel spectrograms of 32 frames and 32 bands, patches of 4x4. The
student of sCD takes the guidance scale as an input. ``say=numbers`` are two to four
digits from a prompt, in 2 seconds. ``front_end=log_mel_64``, ``stft`` and
``waveform`` are the others of ``data/spoken_digits``, of single digits. ``quick`` is a
smoke run of a few steps.
"""

from scm_jax.config import base_config, parse_arg, shrink

VARIANTS = ("teacher", "sct", "scd")
SAY = ("digits", "numbers")
FRONT_ENDS = ("log_mel", "log_mel_64", "stft", "waveform")
BATCH = 64
TEACHER_IMAGES, STUDENT_IMAGES = 96_000, 64_000


def get_config(arg: str = ""):
    """``teacher``, ``sct`` or ``scd``; options say, front_end and quick."""
    variant, options = parse_arg(arg, VARIANTS, say=SAY, front_end=FRONT_ENDS)
    seen, said, quick = options["front_end"], options["say"], options["quick"]
    student = variant != "teacher"
    if said == "numbers" and seen != "log_mel":
        raise ValueError(f"say=numbers is for front_end=log_mel, not {seen}")

    def run_name(variant: str) -> str:
        parts = [f"spoken_{said}", variant] + [seen] * (seen != "log_mel")
        return "_".join(parts + ["quick"] * quick)

    objective = "consistency" if student else "diffusion"
    c = base_config("dit", objective, f"spoken_{said}")
    c.name = run_name(variant)
    if said == "digits":
        c.dataset.front_end = seen
    c.network.update({"width": 128, "depth": 4, "num_heads": 4, "patch": 4})
    if seen == "waveform":
        c.network.patch_sides = (1,)
    elif said == "numbers":
        c.network.patch_sides = (8, 4)
    c.optimizer.name = "muon"
    c.optimizer.learning_rate = 5e-4 if student else 1e-2
    c.optimizer.b2 = 0.99
    c.optimizer.schedule = "cosine"
    c.optimizer.rampup_images = 50.0 * BATCH
    c.ema.rel_std = (0.05, 0.10)
    c.train.batch_size = BATCH
    c.train.duration_images = STUDENT_IMAGES if student else TEACHER_IMAGES
    c.log.every_images = 50 * BATCH
    c.checkpoint.every_images = 300 * BATCH
    c.eval.evaluators = (f"spoken_{said}",)
    c.eval.split = "test"
    c.sampling.batch_size = 64
    c.sampling.guidance = 2.0
    # As in digits.py: in short runs a learned weight drowns the low noise that
    # everything above builds on.
    c.objective.learned_weighting = False
    c.objective.P_mean = -1.0 if student else -0.8
    c.objective.P_std = 1.4
    if not student:
        c.objective.label_dropout = 0.1  # for guidance
        c.sampling.steps = 32
        c.eval.steps = (32,)
    else:
        c.objective.dx_dt = "teacher" if variant == "scd" else "data"
        c.objective.tangent_warmup_images = STUDENT_IMAGES // 8
        # Alg. 1 starts both kinds of student at the teacher's EMA.
        c.init.run = f"runs/{run_name('teacher')}"
        if variant == "scd":
            c.teacher.source = "run"
            c.teacher.run = c.init.run
            c.network.use_guidance = True
            c.objective.guidance_range = (1.0, 4.0)
        else:  # consistency training has no guided velocity
            c.sampling.guidance = 1.0
        c.sampling.sampler = "consistency"
        c.sampling.steps = 2
        c.eval.steps = (1, 2, 4)
    if quick:
        c.dataset.num_items = 64
        c.eval.evaluators = ()
        c.eval.steps = (2,)
        c.sampling.steps = 2
        shrink(c, batch_size=8, writers=c.log.writers)
    c.optimizer.decay_images = float(c.train.duration_images)
    return c
