"""Timing excludes warm-up and is bounded by time; peak memory includes temporary allocations."""

import time

import pytest
import torch

from eval.config.options import Timing
from eval.pipelines.generate import arguments
from eval.pipelines.latency import PeakMemory, latency, parts, throughput
from eval.pipelines.loading import load_pipeline
from eval.pipelines.machine import choose_device, choose_precision, describe_machine

CPU = torch.device("cpu")


def test_warm_up_calls_are_not_counted():
    calls = []

    def function():
        calls.append(None)
        time.sleep(0.05 if len(calls) <= 2 else 0.001)

    measured = latency(function, CPU, Timing(repeats=5))
    assert len(calls) == 7
    assert measured.repeats == 5
    assert 1 <= measured.p5 <= measured.median <= measured.p95
    assert measured.median < 40


def test_timing_stops_after_the_allowed_time():
    measured = latency(lambda: time.sleep(0.02), CPU, Timing(repeats=1000, seconds=0.1))
    assert 3 <= measured.repeats < 10


@pytest.mark.slow
def test_peak_memory_includes_freed_memory():
    with PeakMemory(CPU) as nothing:
        time.sleep(0.02)
    with PeakMemory(CPU) as memory:
        block = torch.ones(256 * 2**20 // 4)
        time.sleep(0.05)
        del block
    assert memory.megabytes > nothing.megabytes + 128


@pytest.mark.slow
def test_time_is_split_into_denoiser_and_decoder(text_pipeline):
    pipe = load_pipeline(text_pipeline, CPU, torch.float32)
    ready = arguments(pipe, {"num_inference_steps": 3, "guidance_scale": 1.0}, ["a bag"], [0])
    slow, decode = pipe.unet.conv_in.forward, pipe.vae.decode

    def late(x):
        time.sleep(0.03)
        return slow(x)

    pipe.unet.conv_in.forward = late
    found = parts(pipe, lambda: pipe(**ready), CPU, repeats=1)
    assert found["denoiser_ms"] >= 3 * 30
    assert found["decoder_ms"] > 0
    assert pipe.vae.decode == decode, "the timed methods are restored"
    assert "forward" not in vars(pipe.unet)


def test_decoder_time_is_none_without_a_decoder(unconditional_pipeline):
    pipe = load_pipeline(unconditional_pipeline, CPU, torch.float32)
    ready = arguments(pipe, {"num_inference_steps": 1}, None, [0])
    assert parts(pipe, lambda: pipe(**ready), CPU, repeats=1)["decoder_ms"] is None


@pytest.mark.slow
def test_throughput_at_several_batch_sizes():
    found = throughput(lambda size: lambda: time.sleep(0.02 if size == 1 else 0.04), 20, CPU)
    assert [entry["batch_size"] for entry in found] == [1, 4, 16, 20]
    assert 0 < found[0]["images_per_second"] < 1 / 0.02
    assert 0 < found[2]["images_per_second"] < 16 / 0.04


def test_device_precision_and_machine():
    assert choose_device("cpu") == CPU
    assert choose_precision(None, CPU) == "float32"
    assert describe_machine(CPU, "float32")["torch"] == torch.__version__
    with pytest.raises(ValueError, match='--device "abacus" is not available here'):
        choose_device("abacus")
    with pytest.raises(ValueError, match=r'--precision must be one of .*, got "int4"'):
        choose_precision("int4", CPU)


def test_a_missing_gpu_is_an_error_with_advice():
    with pytest.raises(ValueError, match="try --device cpu"):
        choose_device("cuda:99")
