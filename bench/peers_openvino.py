"""Times OpenVINO GenAI on a GGUF file, in the virtual environment of bench/peers:

    peers_openvino.py MODEL THREADS CASE...     cases as in peers_llama.c

It reads the file itself and keeps its 8-bit weights as they are; keys and values are as it chooses by
itself. Each case runs once to warm up and once for its figure, a line of JSON with tokens/s; no prompt begins as
one before it did, since the library keeps a prompt's keys for the next that begins alike. It has no call
that only prefills: a prompt's time is that of the prompt with one token produced, which is taken off the
time of longer texts to get that of generating."""
import itertools
import json
import sys
import time

import numpy
import openvino
import openvino_genai


N_PROMPTS = itertools.count()


def prompts(streams, n):
    first = [next(N_PROMPTS) for _ in range(streams)]
    ids = [[3 + (7919 * k + 104729 * i) % 30000 for i in range(n)] for k in first]
    rows = numpy.array(ids, dtype=numpy.int64)
    return openvino_genai.TokenizedInputs(openvino.Tensor(rows), openvino.Tensor(numpy.ones_like(rows)))


def seconds(pipeline, streams, prompt, gen):
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = gen
    config.ignore_eos, config.do_sample = True, False
    inputs = prompts(streams, prompt)
    begun = time.perf_counter()
    results = pipeline.generate(inputs, config)
    taken = time.perf_counter() - begun
    made = [len(one) for one in results.tokens]
    if made != [gen] * streams:
        raise SystemExit(f"peers_openvino: made {made} tokens instead of {streams} times {gen}")
    return taken


def rate(pipeline, case):
    kind, *numbers = case.split(":")
    if kind == "pp":
        return int(numbers[0]) / seconds(pipeline, 1, int(numbers[0]), 1)
    streams, prompt, gen = (1, 2, int(numbers[0])) if kind == "tg" else map(int, numbers)
    first = seconds(pipeline, streams, prompt, 1)
    return streams * gen / (seconds(pipeline, streams, prompt, gen + 1) - first)


def main():
    model, threads, *cases = sys.argv[1:]
    pipeline = openvino_genai.LLMPipeline(model, "CPU", INFERENCE_NUM_THREADS=int(threads))
    for case in cases:
        rate(pipeline, case)
        print(json.dumps({"case": case, "tokens_per_s": round(rate(pipeline, case), 2)}), flush=True)


if __name__ == "__main__":
    main()
