"""The demo generates the images of its pipelines; the page is tested through gradio's client.

Only slow tests import gradio, which takes seconds, and none at the top of the file, which every worker imports.
"""

import asyncio
import io
import json
import re
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.accessibility import BLOCKING, NO_BROWSER, browser, findings
from eval.demo import page, serve, serve_runs, wait_until_interrupted
from eval.pipelines.demo_files import Store, caption, gallery, history
from eval.pipelines.demo_limits import KEEP_SECONDS, MAX_BODY, RequestLimits
from eval.pipelines.demo_pipelines import Demo, DemoPipeline
from eval.pipelines.demo_requests import Request, TimedSamples, batch_arguments
from eval.pipelines.generate import arguments
from eval.pipelines.loading import load_pipeline
from teachers.loading.registry import load_teacher
from teachers.media import ANY_IMAGE, to_record
from tests.commands import demo_main as main

CPU = torch.device("cpu")
ONE_AND_TWO_STEPS = [{"num_steps": n, "call": {"num_inference_steps": n, "guidance_scale": 1.0}} for n in (1, 2)]


@pytest.fixture(scope="module")
def demo(make_run_in, tmp_path_factory) -> Demo:
    root = tmp_path_factory.mktemp("demo")
    runs = [make_run_in(root, "one"), make_run_in(root, "<b>two</b>", calls=ONE_AND_TWO_STEPS)]
    return Demo(runs, CPU, "float32")


@pytest.mark.slow
def test_every_pipeline_generates_its_own_image_from_the_same_noise(demo, text_pipeline):
    results = demo.generate(Request("a coat", 5, 2, 4))
    assert [result.steps for result in results] == [4, 1, 2]  # the first student supports one step only
    assert [result.evaluations for result in results] == [8, 1, 2]  # the teacher uses guidance
    assert all(result.milliseconds > 0 and result.megabytes > 10 and result.weights > 0 for result in results)
    assert [result.baked for result in results] == [False, True, True]
    pipe = load_pipeline(text_pipeline, CPU, torch.float32)
    calls = [{"num_inference_steps": 4, "guidance_scale": 2.0}, *(entry["call"] for entry in ONE_AND_TWO_STEPS)]
    for result, call in zip(results, calls, strict=True):
        expected = ANY_IMAGE.received(pipe(**arguments(pipe, call, ["a coat"], [0], 5)))[0]
        assert result.images[0].size == (32, 32), "the pipeline's own size"
        assert_same(result.images[0], expected)
    again, other_seed = demo.generate(Request("a coat", 5, 2, 4)), demo.generate(Request("a coat", 6, 2, 4))
    assert again[2].images[0].tobytes() == results[2].images[0].tobytes() != other_seed[2].images[0].tobytes()


def assert_same(image: Image.Image, expected: torch.Tensor) -> None:
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert ((pixels / 255 - expected).abs() <= 0.5 / 255 + 1e-5).all()


@pytest.mark.slow
def test_batch_has_the_images_of_consecutive_seeds(demo):
    batch = demo.generate(Request("a coat", 5, 2, 4, count=3))
    for result in batch:
        assert result.seeds == (5, 6, 7) and len(result.images) == 3
    alone = demo.generate(Request("a coat", 6, 2, 4))
    for one, many in zip(alone, batch, strict=True):
        difference = np.abs(np.asarray(one.images[0], int) - np.asarray(many.images[1], int))
        assert difference.max() <= 1
        assert one.evaluations == many.evaluations, "of each image"


@pytest.mark.slow
def test_guidance_and_negative_prompt_change_the_teacher_only(demo):
    assert demo.guidance == 2.0 and demo.takes_negative_prompt
    usual = demo.generate(Request("a coat", 5, 2, 4))
    for request in (Request("a coat", 5, 2, 4, guidance=6.0), Request("a coat", 5, 2, 4, negative_prompt="a bag")):
        teacher, *students = demo.generate(request)
        assert teacher.images[0].tobytes() != usual[0].images[0].tobytes()
        assert [s.images[0].tobytes() for s in students] == [s.images[0].tobytes() for s in usual[1:]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (("  ", 0, 1, 3), "the prompt is empty"),
        (("x" * 1001, 0, 1, 3), "at most 1,000 characters, got 1,001"),
        (("a coat", 0, 1, 13), "from 1 to 12, got 13"),
        (("a coat", 0, 0, 3), "at least 1, got 0"),
        (("a coat", -1, 1, 3), "the seed must be from 0 to 2147483647, got -1"),
        (("a coat", 0, 1, 3, 31.0), "the guidance must be from 0 to 30, got 31.0"),
        (("a coat", 0, 1, 3, None, "x" * 1001), "the negative prompt must have at most 1,000 characters"),
        (("a coat", 0, 1, 3, None, "", 9), "from 1 to 8, got 9"),
    ],
)
def test_invalid_calls_are_errors(demo, call, message):
    with pytest.raises(ValueError, match=message):
        demo.generate(Request(*call))


def test_calls_of_one_sample_are_joined_to_a_batch():
    calls = [
        {"latents": torch.full((1, 2), float(i)), "prompt": ["a"], "generator": [i], "sigmas": [1.0], "batch_size": 1}
        for i in range(3)
    ]
    batch = batch_arguments(calls)
    assert batch["latents"][:, 0].tolist() == [0, 1, 2] and batch["prompt"] == ["a"] * 3
    assert batch["generator"] == [0, 1, 2] and batch["sigmas"] == [1.0] and batch["batch_size"] == 3


def test_teacher_call_drops_the_time_grid_for_other_numbers_of_steps():
    teacher = DemoPipeline("teacher", None, {4: {"num_inference_steps": 4, "sigmas": [1.0, 0.5]}}, is_teacher=True)
    assert teacher.call(4) == (4, {"num_inference_steps": 4, "sigmas": [1.0, 0.5]})
    assert teacher.call(7) == (7, {"num_inference_steps": 7})


def timed_samples(milliseconds: float, steps: int, evaluations: int, **more) -> TimedSamples:
    images = (Image.new("RGB", (40, 30)),) * 2
    return TimedSamples("<a> b", images, (3, 4), steps, evaluations, milliseconds, 512.3, 12.34, **more)


def test_caption_has_time_speedup_memory_and_what_is_part_of_the_weights():
    teacher, student = timed_samples(900.0, 50, 100), timed_samples(30.0, 1, 1, baked=True)
    assert caption(teacher, teacher, "cpu") == (
        "<b>900 ms</b> (450 ms each)<br>50 steps, 100 network evaluations<br>"
        "12.3 MB of weights, 512 MB peak of the process"
    )
    assert "30.0&times; speed-up<br>1 step, 1 network evaluation<br>" in caption(student, teacher, "cuda")
    assert "peak on the GPU<br>guidance and negative prompt are part of the weights" in caption(student, None, "cuda")


def test_downloads_have_the_own_size_and_the_seed_in_their_name(tmp_path):
    store, request = Store(tmp_path), Request("<x>", 3, 1, 50, 2.0, "fog", 2)
    (files,) = store.write(request, [timed_samples(900.0, 50, 100)])
    assert files.names == ("a-b_50-steps_seed-3.png", "a-b_50-steps_seed-4.png")
    image = Image.open(files.files[1])
    assert image.size == (40, 30) and image.text["prompt"] == "<x>" and image.text["seed"] == "4"
    assert (image.text["guidance"], image.text["negative_prompt"]) == ("2.0", "fog")
    shown = gallery(timed_samples(900.0, 50, 100), files, "<x>", ANY_IMAGE)
    assert shown.count("download=") == 2 and 'width="280" height="210" class="pixelated"' in shown
    assert 'alt="&lt;a&gt; b, seed 3: &lt;x&gt;"' in shown and "<x>" not in shown
    past = history([(request, [files])])
    assert past.count("<img") == 2 and "&lt;x&gt;" in past and "guidance 2, without “fog”" in past
    store.delete_old(-1)
    assert "<img" not in history([(request, [files])]), "files that are deleted are not linked"
    assert not list(tmp_path.iterdir()) and KEEP_SECONDS == 3600


@pytest.mark.slow
def test_unconditional_pipelines_have_no_prompt(make_run, unconditional_pipeline):
    teacher = {"family": "unconditional", "path": str(unconditional_pipeline), "call": {"num_inference_steps": 3}}
    calls = [{"num_steps": 1, "call": {"num_inference_steps": 1}}]
    run = make_run("plain", unconditional_pipeline, teacher=teacher, calls=calls)
    demo = Demo([run], CPU, "float32")
    assert not demo.takes_prompt
    assert [result.evaluations for result in demo.generate(Request("", 0, 1, 2))] == [2, 1]


@pytest.mark.slow
def test_pipeline_without_distill_json_is_shown_without_a_teacher(text_pipeline, tmp_path):
    demo = Demo([text_pipeline], CPU, "float32")
    (result,) = demo.generate(Request("a coat", 0, demo.student_steps[0], 0))
    assert result.steps == demo.student_steps[0] == 50
    assert "speed-up" not in caption(result, None, "cpu") and not result.baked
    assert "Students' steps" in json.dumps(page(demo, Store(tmp_path)).get_config_file(), default=str)


@pytest.mark.slow
def test_missing_run_is_an_error_without_traceback(tmp_path, capsys):
    assert main([str(tmp_path / "missing")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "Traceback" not in error


@pytest.mark.slow
def test_port_in_use_is_an_error(make_run, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main([str(make_run("x")), "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot be served at 127.0.0.1:" in capsys.readouterr().err


@pytest.mark.slow
def test_page_is_served_to_this_machine_only_by_default(make_run):
    served = []
    serve_runs([make_run()], show=lambda demo, *address: served.append(address))
    assert served == [("127.0.0.1", 7860, False)]


def test_error_without_gradio_says_what_to_install(make_run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main([str(make_run())]) == 2
    assert 'the demo needs gradio: pip install -e ".[demo]"' in capsys.readouterr().err


@pytest.fixture
def served(demo):
    """The address of the served page."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    blocks = serve(demo, "127.0.0.1", port, share=False, block=False)
    yield f"http://127.0.0.1:{port}/"
    blocks.close()


CALL = ("a coat", "", 1, 1, 2, 3, 2.0)  # prompt, negative prompt, seed, images, steps, teacher's steps, guidance


def client_of(address: str):
    from gradio_client import Client  # takes seconds, so only slow tests import it

    return Client(address, verbose=False)


def links(answer: list[str], address: str) -> list[str]:
    """The addresses of the files in an answer's figures."""
    return [address + link for link in re.findall(r'href="([^"]*)" download', "".join(answer[:3]))]


@pytest.mark.slow
def test_page_generates_images_through_its_interface(demo, served, tmp_path):
    texts = json.dumps(page(demo, Store(tmp_path)).get_config_file(), default=str)
    assert "&lt;b&gt;two&lt;/b&gt;" in texts and "<b>two</b>" not in texts
    client = client_of(served)
    answer = client.predict(*CALL, api_name="/generate")
    assert len(answer) == 2 * 3 + 1, "figures, captions and the history"
    first, second, third = answer[3:6]
    assert "3 steps, 6 network evaluations" in first and "1 step, 1 network" in second and "2 steps" in third
    for link in links(answer, served):
        assert Image.open(io.BytesIO(httpx.get(link).content)).size == (32, 32)
    again = client.predict("a bag", *CALL[1:], api_name="/generate")
    assert again[6].count("<li>") == 2 and again[6].index("a bag") < again[6].index("a coat")
    client.predict(*CALL[:5], None, CALL[6], api_name="/generate")  # empty: a warning on the page, no error
    client.close()


@pytest.mark.slow
def test_twenty_users_at_once_get_their_own_results(demo, served):
    seeds = range(20)
    expected = {seed: [r.images[0] for r in demo.generate(Request(f"a coat {seed}", seed, 2, 1))] for seed in seeds}

    def call(seed: int) -> list:
        client = client_of(served)
        answer = client.predict(f"a coat {seed}", "", seed, 1, 2, 1, 2.0, api_name="/generate")
        images = [Image.open(io.BytesIO(httpx.get(link, timeout=60).content)) for link in links(answer, served)]
        client.close()
        return [answer, images]

    with ThreadPoolExecutor(len(seeds)) as pool:
        answers = dict(zip(seeds, pool.map(call, seeds), strict=True))
    for seed, (answer, images) in answers.items():
        assert [image.text["prompt"] for image in images] == [f"a coat {seed}"] * 3
        assert [image.tobytes() for image in images] == [image.tobytes() for image in expected[seed]]
        assert answer[6].count("<li>") == 1 and f"seed {seed}," in answer[6], "nobody sees the history of others"


def request(method: str, headers: list[tuple[bytes, bytes]], *chunks: bytes) -> tuple[int, int]:
    """The status of a request to an application behind `RequestLimits`, and how many bytes the application received."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    sent, received = [], []

    async def app(scope, receive, send):
        for _ in chunks:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            received.append(len(message["body"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "headers": headers}
    asyncio.run(RequestLimits(app)(scope, receive, send))
    return (sent[0]["status"] if sent else 0), sum(received)


def test_page_takes_small_requests_without_files():
    assert request("POST", [(b"content-length", b"5")], b"hello") == (200, 5)
    assert request("POST", [(b"Content-Type", b"multipart/form-data; boundary=x")], b"hello") == (403, 0)
    assert request("POST", [(b"content-length", b"%d" % (MAX_BODY + 1))], b"hello") == (413, 0)
    assert request("POST", [(b"content-length", b"-5")], b"hello") == (413, 0)
    assert request("POST", [], bytes(MAX_BODY), b"x")[0] == 0  # without a length: ended before the rest is taken


@pytest.mark.slow
def test_served_page_refuses_uploads_and_other_files(served, tmp_path):
    for path in ("upload", "component_server", "process_recording"):
        files = {"files": ("x.bin", io.BytesIO(bytes(1000)))}
        assert httpx.post(f"{served}gradio_api/{path}", files=files).status_code == 403
    (tmp_path / "secret.png").write_bytes(b"x")
    for file in (tmp_path / "secret.png", "/etc/hostname", "../../etc/hostname"):
        assert httpx.get(f"{served}gradio_api/file={file}").status_code in (403, 404)


@pytest.mark.slow
def test_call_that_takes_too_long_is_ended(make_run):
    demo = Demo([make_run("one")], CPU, "float32", max_seconds=30)
    demo.max_seconds = 0.0
    with pytest.raises(ValueError, match="teacher took longer than 0 seconds; choose fewer steps"):
        demo.generate(Request("a coat", 0, 1, 3))
    demo.max_seconds = 30.0
    assert demo.generate(Request("a coat", 0, 1, 3))  # the limit of one call does not affect the next


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Wan 2.1", "Stable Audio"])
@pytest.mark.first_by_default
def test_clips_and_sounds_are_played(name, make_run, tiny_media, tmp_path):
    family, folder, size = tiny_media(name)
    teacher = load_teacher(folder, size=size)
    call = teacher.usual_call(2, 2.0)
    run = make_run(
        pipeline=folder,
        teacher={"family": family, "path": str(folder), "call": call, "num_steps": 2},
        calls=[{"num_steps": 2, "call": call}],
        evaluation={"prompts": None, "features": None},
        medium=to_record(teacher.medium),
    )
    demo = Demo([run], CPU, "float32")
    request = Request("a bag", 0, 2, 2)
    results = demo.generate(request)
    mime = "image/webp" if teacher.medium.name == "video" else "audio/wav"
    assert [result.playables[0].mime for result in results] == [mime, mime]
    assert results[0].playables == results[1].playables  # the same pipeline, prompt and noise
    store = Store(tmp_path)
    files = store.write(request, results)[0]
    html = gallery(results[0], files, "a bag", teacher.medium)
    assert files.names[0].endswith(".webp" if teacher.medium.name == "video" else ".wav")
    assert ("<audio controls" in html) == (teacher.medium.name == "audio")
    assert "from prompt to " + teacher.medium.noun in json.dumps(page(demo, store).get_config_file(), default=str)


@pytest.mark.slow
@pytest.mark.skipif(browser() is None, reason=NO_BROWSER)
def test_axe_finds_nothing_serious_in_the_page(served):
    found = findings([served], ready="button.primary")
    assert [entry for entry in found if entry["impact"] in BLOCKING] == []


@pytest.mark.slow
def test_ctrl_c_closes_the_page_at_once(capsys):
    class Page:
        served = 0

        @property
        def is_running(self):
            self.served += 1
            if self.served > 2:
                raise KeyboardInterrupt
            return True

    store, codes = Store(), []
    wait_until_interrupted(Page(), store, codes.append)
    assert codes == [130] and not store.folder.exists()
    assert capsys.readouterr().out == "the page is closed\n"
