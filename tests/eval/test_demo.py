"""The demo generates the images of its pipelines; the page is tested through gradio's client.

Only slow tests import gradio, which takes seconds, and none at the top of the file, which every worker imports.
"""

import asyncio
import io
import json
import socket
import sys

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from eval.demo import caption, page, serve, serve_runs, shown, with_own_name
from eval.pipelines.demo_limits import MAX_BODY, RequestLimits
from eval.pipelines.demo_pipelines import Demo, DemoPipeline, TimedSample
from eval.pipelines.generate import arguments, load_pipeline
from teachers.loading.registry import load_teacher
from teachers.media import ANY_IMAGE, to_record
from tests.commands import demo_main as main

CPU = torch.device("cpu")
ONE_AND_TWO_STEPS = [{"num_steps": n, "call": {"num_inference_steps": n, "guidance_scale": 1.0}} for n in (1, 2)]


@pytest.fixture
def demo(make_run) -> Demo:
    return Demo([make_run("one"), make_run("<b>two</b>", calls=ONE_AND_TWO_STEPS)], CPU, "float32")


@pytest.mark.slow
def test_every_pipeline_generates_its_own_image_from_the_same_noise(demo, text_pipeline):
    results = demo.generate("a coat", 5, 2, 4)
    assert [result.steps for result in results] == [4, 1, 2]  # the first student supports one step only
    assert [result.evaluations for result in results] == [8, 1, 2]  # the teacher uses guidance
    assert all(result.milliseconds > 0 for result in results)
    pipe = load_pipeline(text_pipeline, CPU, torch.float32)
    calls = [{"num_inference_steps": 4, "guidance_scale": 2.0}, *(entry["call"] for entry in ONE_AND_TWO_STEPS)]
    for result, call in zip(results, calls, strict=True):
        expected = ANY_IMAGE.received(pipe(**arguments(pipe, call, ["a coat"], [0], 5)))[0]
        assert result.image.size == (256, 256)  # 32 x 32, magnified by a whole factor
        small = torch.from_numpy(np.array(result.image.resize((32, 32), 0))).permute(2, 0, 1)
        assert ((small / 255 - expected).abs() <= 0.5 / 255 + 1e-5).all()
    again, other_seed = demo.generate("a coat", 5, 2, 4), demo.generate("a coat", 6, 2, 4)
    assert again[2].image.tobytes() == results[2].image.tobytes() != other_seed[2].image.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (("  ", 0, 1, 3), "the prompt is empty"),
        (("x" * 1001, 0, 1, 3), "at most 1,000 characters, got 1,001"),
        (("a coat", 0, 1, 13), "from 1 to 12, got 13"),
        (("a coat", 0, 0, 3), "at least 1, got 0"),
    ],
)
def test_invalid_calls_are_errors(demo, call, message):
    with pytest.raises(ValueError, match=message):
        demo.generate(*call)


def test_teacher_call_drops_the_time_grid_for_other_numbers_of_steps():
    teacher = DemoPipeline("teacher", None, {4: {"num_inference_steps": 4, "sigmas": [1.0, 0.5]}}, is_teacher=True)
    assert teacher.call(4) == (4, {"num_inference_steps": 4, "sigmas": [1.0, 0.5]})
    assert teacher.call(7) == (7, {"num_inference_steps": 7})


def test_caption_has_the_speedup_over_the_teacher():
    teacher, student = TimedSample(None, 50, 100, 900.0), TimedSample(None, 1, 1, 30.0)
    assert caption(teacher, teacher) == "<b>900 ms</b><br>50 steps, 100 network evaluations"
    assert caption(student, teacher) == "<b>30 ms</b> &middot; 30.0&times; speed-up<br>1 step, 1 network evaluation"


def test_unconditional_pipelines_have_no_prompt(make_run, unconditional_pipeline):
    teacher = {"family": "unconditional", "path": str(unconditional_pipeline), "call": {"num_inference_steps": 3}}
    calls = [{"num_steps": 1, "call": {"num_inference_steps": 1}}]
    run = make_run("plain", unconditional_pipeline, teacher=teacher, calls=calls)
    demo = Demo([run], CPU, "float32")
    assert not demo.takes_prompt
    assert [result.evaluations for result in demo.generate("", 0, 1, 2)] == [2, 1]


@pytest.mark.slow
def test_pipeline_without_distill_json_is_shown_without_a_teacher(text_pipeline):
    demo = Demo([text_pipeline], CPU, "float32")
    (result,) = demo.generate("a coat", 0, demo.student_steps[0], 0)
    assert result.steps == demo.student_steps[0] == 50
    assert "speed-up" not in caption(result, None)
    assert "Steps of the students" in json.dumps(page(demo).get_config_file())


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


@pytest.mark.slow
def test_page_generates_images_through_its_interface(demo):
    from gradio_client import Client

    blocks = page(demo)
    texts = json.dumps(blocks.get_config_file())
    assert "&lt;b&gt;two&lt;/b&gt;" in texts and "<b>two</b>" not in texts
    _, address, _ = blocks.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, share=False)
    try:
        client = Client(address, verbose=False)
        *images, first, second, third = client.predict("a coat", 1, 2, 3, api_name="/generate")
        assert len(images) == 3
        assert "3 steps, 6 network evaluations" in first and "1 step, 1 network" in second and "2 steps" in third
        client.close()
    finally:
        blocks.close()


@pytest.mark.slow
def test_equal_images_of_two_calls_are_files_of_their_own(tmp_path):
    """gradio names a file by the image's content and writes it again, also while a browser loads it."""
    from gradio.processing_utils import save_pil_to_cache

    paths = [save_pil_to_cache(with_own_name(Image.new("RGB", (8, 8))), str(tmp_path), format="png") for _ in "12"]
    assert paths[0] != paths[1]
    assert all(Image.open(path).tobytes() == bytes(192) for path in paths)


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
def test_served_page_refuses_uploads_and_keeps_nothing(demo, tmp_path, monkeypatch):
    from gradio_client import Client

    stored = tmp_path / "gradio"
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(stored))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    blocks = serve(demo, "127.0.0.1", port, share=False, block=False)
    try:
        address = f"http://127.0.0.1:{port}"
        for path in ("upload", "component_server", "process_recording"):
            files = {"files": ("x.bin", io.BytesIO(bytes(1000)))}
            assert httpx.post(f"{address}/gradio_api/{path}", files=files).status_code == 403
        assert not [file for file in stored.rglob("*") if file.is_file()]
        client = Client(address, verbose=False)
        first, second = (client.predict("a coat", 1, 2, 3, api_name="/generate") for _ in "12")
        assert len(first) == len(second) == 6
        client.close()
        assert len(list(stored.rglob("image.png"))) >= 6  # two calls with equal images
    finally:
        blocks.close()


@pytest.mark.slow
def test_call_that_takes_too_long_is_ended(make_run):
    demo = Demo([make_run("one")], CPU, "float32", max_seconds=30)
    demo.max_seconds = 0.0
    with pytest.raises(ValueError, match="teacher took longer than 0 seconds; choose fewer steps"):
        demo.generate("a coat", 0, 1, 3)
    demo.max_seconds = 30.0
    assert demo.generate("a coat", 0, 1, 3)  # the limit of one call does not affect the next


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Wan 2.1", "Stable Audio"])
def test_clips_and_sounds_are_played(name, make_run, tiny_media):
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
    results = demo.generate("a bag", 0, 2, 2)
    mime = "image/webp" if teacher.medium.name == "video" else "audio/wav"
    assert [result.playable.mime for result in results] == [mime, mime]
    assert results[0].playable == results[1].playable  # the same pipeline, prompt and noise
    html = shown(results[0])
    assert html.count(f'src="data:{results[0].playable.mime};base64,') == 1
    assert ("<audio controls" in html) == (teacher.medium.name == "audio")
    assert "from prompt to " + teacher.medium.noun in json.dumps(page(demo).get_config_file())
