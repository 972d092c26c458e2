import io

from scm_jax.training.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def walk(progress, clock, steps, seconds):
    for step in range(1, steps + 1):
        clock.now += seconds
        progress.update(step, loss=0.25)


def test_plain_lines_come_every_ten_seconds_at_most_and_at_the_end():
    out, clock = io.StringIO(), Clock()
    progress = Progress(100, 8, stream=out, clock=clock)
    walk(progress, clock, steps=99, seconds=1.0)
    lines = out.getvalue().splitlines()
    assert len(lines) == 10
    assert "\r" not in out.getvalue()
    assert lines[-1] == ("train 728/800 images  91%  loss 0.25  1 steps/s  ETA 0:00:09")
    progress.update(100)
    assert "800/800 images 100%" in out.getvalue().splitlines()[-1]


def test_terminal_gets_one_line_that_changes():
    out, clock = Terminal(), Clock()
    progress = Progress(100, 8, stream=out, clock=clock)
    walk(progress, clock, steps=50, seconds=0.5)
    assert "\n" not in out.getvalue()
    last = out.getvalue().split("\r")[-1]
    assert last.startswith("train [############............]")
    assert "50%" in last and "2 steps/s" in last and "ETA 0:00:25" in last


def test_rate_recovers_after_something_slow():
    out, clock = io.StringIO(), Clock()
    progress = Progress(1000, 8, stream=out, clock=clock)
    walk(progress, clock, steps=20, seconds=1.0)
    clock.now += 500  # an evaluation
    progress.message("eval/frechet 0.5")
    for step in range(21, 60):
        clock.now += 1.0
        progress.update(step)
    assert "  1 steps/s" in out.getvalue().splitlines()[-1]
    assert "eval/frechet 0.5" in out.getvalue().splitlines()
