"""Plots and the report page, which is opened in headless Chromium; its numbers are read back."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from caopd_verl.cli import BAD_INPUT, OK, main

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
FAST = ["--n-resamples", "50"]
ATTACK = "<script>document.title='hacked'</script><img src=x onerror=document.title='hacked'>"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    for name, seed, power in (("base", 0, 3.0), ("trained", 1, 1.0)):
        rng = np.random.default_rng(seed)
        rows = []
        for i in range(80):
            c = rng.beta(2, 1)
            letter = "B" if rng.random() < c**power else "A"
            line = f"\nConfidence: {c:.2f}" if i % 20 else ""
            row = {
                "id": i,
                "answer": "B",
                "prompt": f"Question {i}? {ATTACK if i == 0 else ''}",
                "response": f"{ATTACK}<answer>{letter}</answer>{line}",
                "expected_confidence": c,
                "expected_mass": 0.9,
                "expected_kind": "exact",
            }
            rows.append(row)
        path = folder / f"{name}.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows))
        args = [
            "eval",
            "--responses",
            str(path),
            "--verifier",
            "multiple_choice",
            "--output",
            str(folder / name),
        ]
        assert (
            main([*args, "--name", f"{name} <b>", "--compat", *FAST, "--n-simulations", "50"]) == OK
        )
    return folder


@pytest.fixture(scope="module")
def page(results):
    path = results / "out" / "report.html"
    assert (
        main(
            [
                "report",
                str(results / "base"),
                str(results / "trained"),
                "-o",
                str(path),
                "--title",
                "T & U",
                *FAST,
            ]
        )
        == OK
    )
    return path


def test_the_page_is_self_contained_and_escaped(page):
    text = page.read_text(encoding="utf-8")
    assert "T &amp; U" in text and html.escape(ATTACK[:8]) in text
    assert "<script" not in text and "onerror=document" not in text.replace(
        "onerror=document.title=&#39;", ""
    )
    links = re.findall(r'(?:src|href)="([^"]{0,30})', text)
    assert links and all(link.startswith("data:image/svg+xml;base64,") for link in links)


def browser(folder):
    """Chromium without a screen, a profile of its own, and nothing that calls home."""
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
    quiet = "--disable-background-networking --disable-component-update"
    return [CHROMIUM, *flags.split(), *quiet.split(), f"--user-data-dir={folder}/profile"]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_chromium_shows_the_numbers_of_metrics_json(page, results, tmp_path):
    command = [*browser(tmp_path), "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120)
    dom = done.stdout
    assert "<title>T &amp; U</title>" in dom  # no script of a response has run
    for name in ("base", "trained"):
        figures = json.loads((results / name / "metrics.json").read_text())["readouts"]
        section = dom.split(f'<section data-model="{name} &lt;b&gt;">')[1].split("</section>")[0]
        for readout in ("stated", "expected"):
            for metric in ("acc", "ece", "brier", "spr"):
                row = section.split(f'<tr data-metric="{metric}">')[1].split("</tr>")[0]
                cell = row.split(f'data-readout="{readout}">')[1].split("<")[0]
                assert float(cell.split(" ")[0]) == pytest.approx(
                    figures[readout]["metrics"][metric]["value"], abs=6e-4
                )
        first = section.split("Confidently wrong")[1].split("<summary>")[1].split("</summary>")[0]
        rows = [
            json.loads(line) for line in (results / name / "rows.jsonl").read_text().splitlines()
        ]
        worst = max(
            r["confidence"] for r in rows if not r["correct"] and r["confidence"] is not None
        )
        assert f"stated {worst}" in first
    assert (
        dom.count('class="comparison"') == 3
    )  # models against each other, expected against stated for both


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_chromium_draws_every_plot(page, tmp_path):
    shot = tmp_path / "shot.png"
    command = [*browser(tmp_path), f"--screenshot={shot}", "--window-size=1200,3000"]
    subprocess.run([*command, page.as_uri()], capture_output=True, timeout=120, check=True)
    from matplotlib.image import imread

    pixels = imread(shot)[..., :3]
    assert pixels.shape[:2] == (3000, 1200)
    colours = {
        (0, 114, 178),
        (213, 94, 0),
    }  # the palette's first two: they come from the plots alone
    flat = (pixels.reshape(-1, 3) * 255).round().astype(int)
    for colour in colours:
        assert (np.abs(flat - colour).max(axis=1) <= 2).sum() > 200


def test_plots_of_one_and_of_several_results(results, tmp_path):
    assert main(["plot", str(results / "base"), "-o", str(tmp_path / "one")]) == OK
    one = {p.name for p in (tmp_path / "one").iterdir()}
    for kind in ("png", "svg"):
        assert {
            f"{n}.{kind}"
            for n in ("reliability_stated", "bars_expected", "histogram_stated", "risk_coverage")
        } <= one
    assert (
        main(
            [
                "plot",
                str(results / "base"),
                str(results / "trained"),
                "-o",
                str(tmp_path / "two"),
                "--formats",
                "png",
            ]
        )
        == OK
    )
    two = {p.name for p in (tmp_path / "two").rglob("*.png")}
    assert {"accuracy_against_confidence_stated.png", "compare_reliability_expected.png"} <= two
    data = (tmp_path / "two" / "accuracy_against_confidence_stated.png").read_bytes()
    assert int.from_bytes(data[16:20], "big") == 1020  # one column of 3.4 inches at 300 dpi


def test_training_curves(tmp_path, capsys):
    log = tmp_path / "metrics.jsonl"
    log.write_text("\n".join(json.dumps({"step": i, "val/ece": 0.3 - i / 100}) for i in range(10)))
    assert (
        main(["plot", "--training", str(log), "--panel", "ECE=val/ece", "-o", str(tmp_path / "p")])
        == OK
    )
    assert (tmp_path / "p" / "training.svg").exists()


def test_errors(tmp_path, results, capsys):
    assert main(["plot", "-o", str(tmp_path)]) == BAD_INPUT
    assert (
        main(["plot", str(results / "base"), "-o", str(tmp_path), "--formats", "gif"]) == BAD_INPUT
    )
    assert main(["report", str(tmp_path / "none"), "-o", str(tmp_path / "r.html")]) == BAD_INPUT
    assert "there are no evaluated rows, nor such a folder" in capsys.readouterr().err
