"""The demo: what it draws is what the pipelines draw; the page itself through gradio's client."""

import json
import socket
import sys

import pytest
import torch
from gradio_client import Client

from eval.demo import Column, Drawn, Studio, caption, page, serve_runs
from eval.pipelines.generate import arguments, images_of, load_pipeline
from tests.commands import demo_main as main

CPU = torch.device("cpu")
TWO = [{"num_steps": n, "call": {"num_inference_steps": n, "guidance_scale": 1.0}} for n in (1, 2)]


@pytest.fixture
def studio(make_run):
    return Studio([make_run("one"), make_run("<b>two</b>", calls=TWO)], CPU, "float32")


def test_every_column_draws_its_own_pipelines_picture_from_the_same_noise(studio, text_pipeline):
    drawn = studio.draw("a coat", 5, 2, 4)
    assert [each.steps for each in drawn] == [4, 1, 2]  # the first student takes one step only
    assert [each.evaluations for each in drawn] == [8, 1, 2]  # the teacher is guided
    assert all(each.milliseconds > 0 for each in drawn)
    pipe = load_pipeline(text_pipeline, CPU, torch.float32)
    calls = [{"num_inference_steps": 4, "guidance_scale": 2.0}, *(entry["call"] for entry in TWO)]
    for each, call in zip(drawn, calls, strict=True):
        wanted = images_of(pipe(**arguments(pipe, call, ["a coat"], [0], 5)))[0]
        assert each.image.size == (256, 256)  # 32 x 32, enlarged without smoothing
        small = torch.tensor(list(each.image.resize((32, 32), 0).getdata())).view(32, 32, 3).permute(2, 0, 1)
        assert ((small / 255 - wanted).abs() <= 0.5 / 255 + 1e-5).all()
    again, other = studio.draw("a coat", 5, 2, 4), studio.draw("a coat", 6, 2, 4)
    assert again[2].image.tobytes() == drawn[2].image.tobytes() != other[2].image.tobytes()


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (("  ", 0, 1, 3), "write what to draw"),
        (("x" * 1001, 0, 1, 3), "1,001 letters"),
        (("a coat", 0, 1, 13), "takes 1 to 12 steps here"),
        (("a coat", 0, 0, 3), "a student 1 at least"),
    ],
)
def test_what_cannot_be_drawn_is_told_in_a_sentence(studio, asked, sentence):
    with pytest.raises(ValueError, match=sentence):
        studio.draw(*asked)


def test_a_teacher_drops_the_grid_of_its_usual_number_of_steps():
    column = Column("teacher", None, {4: {"num_inference_steps": 4, "sigmas": [1.0, 0.5]}}, teacher=True)
    assert column.call(4) == (4, {"num_inference_steps": 4, "sigmas": [1.0, 0.5]})
    assert column.call(7) == (7, {"num_inference_steps": 7})


def test_captions_compare_with_the_teacher():
    teacher, student = Drawn(None, 50, 100, 900.0), Drawn(None, 1, 1, 30.0)
    assert caption(teacher, teacher) == "<b>900 ms</b><br>50 steps, 100 network evaluations"
    assert caption(student, teacher) == "<b>30 ms</b> &middot; 30.0 times as fast<br>1 step, 1 network evaluation"


def test_pipelines_without_words_have_no_prompt(make_run, unconditional_pipeline):
    teacher = {"family": "unconditional", "path": str(unconditional_pipeline), "call": {"num_inference_steps": 3}}
    calls = [{"num_steps": 1, "call": {"num_inference_steps": 1}}]
    run = make_run("plain", unconditional_pipeline, teacher=teacher, calls=calls)
    studio = Studio([run], CPU, "float32")
    assert not studio.prompted
    assert [each.evaluations for each in studio.draw("", 0, 1, 2)] == [2, 1]


def test_a_strangers_pipeline_is_drawn_without_a_teacher(text_pipeline):
    studio = Studio([text_pipeline], CPU, "float32")
    (drawn,) = studio.draw("a coat", 0, studio.choices[0], 0)
    assert drawn.steps == studio.choices[0] == 50 and "as fast" not in caption(drawn, None)
    assert "Steps of the students" in json.dumps(page(studio).get_config_file())


def test_the_command_line_tells_mistakes_and_serves_this_machine_only(make_run, tmp_path, capsys):
    assert main([str(tmp_path / "gone")]) == 2
    assert capsys.readouterr().err.startswith("error: ") and "Traceback" not in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main([str(make_run("x")), "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot be served at 127.0.0.1:" in capsys.readouterr().err
    served = []
    serve_runs([make_run()], show=lambda studio, *where: served.append(where))
    assert served == [("127.0.0.1", 7860, False)]


def test_without_gradio_a_sentence_says_what_to_install(make_run, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main([str(make_run())]) == 2
    assert 'the demo needs gradio: pip install -e ".[demo]"' in capsys.readouterr().err


def test_the_page_draws_through_its_own_interface(studio):
    blocks = page(studio)
    texts = json.dumps(blocks.get_config_file())
    assert "&lt;b&gt;two&lt;/b&gt;" in texts and "<b>two</b>" not in texts
    _, address, _ = blocks.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, share=False)
    try:
        client = Client(address, verbose=False)
        *pictures, first, second, third = client.predict("a coat", 1, 2, 3, api_name="/draw")
        assert len(pictures) == 3
        assert "3 steps, 6 network evaluations" in first and "1 step, 1 network" in second and "2 steps" in third
        client.close()
    finally:
        blocks.close()
