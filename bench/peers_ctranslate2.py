"""Times CTranslate2 on a directory that peers_models.py made, in the virtual environment of bench/peers:

    peers_ctranslate2.py MODEL THREADS CASE...     cases as in peers_llama.c

Each case runs once to warm up and once for its figure, a line of JSON with tokens/s. CTranslate2 has no
call that only prefills: a prompt's time is that of the prompt with one token produced, which is taken
off the time of longer texts to get that of generating."""
import json
import sys
import time

import ctranslate2


def prompts(streams, n):
    return [[f"t{3 + (7919 * s + 104729 * i) % 30000}" for i in range(n)] for s in range(streams)]


def seconds(generator, streams, prompt, gen):
    begun = time.perf_counter()
    results = generator.generate_batch(prompts(streams, prompt), max_length=gen, min_length=gen, sampling_topk=1,
                                       beam_size=1, include_prompt_in_result=False, max_batch_size=streams)
    taken = time.perf_counter() - begun
    made = [len(one.sequences_ids[0]) for one in results]
    if made != [gen] * streams:
        raise SystemExit(f"peers_ctranslate2: made {made} tokens instead of {streams} times {gen}")
    return taken


def rate(generator, case):
    kind, *numbers = case.split(":")
    if kind == "pp":
        return int(numbers[0]) / seconds(generator, 1, int(numbers[0]), 1)
    streams, prompt, gen = (1, 2, int(numbers[0])) if kind == "tg" else map(int, numbers)
    first = seconds(generator, streams, prompt, 1)
    return streams * gen / (seconds(generator, streams, prompt, gen + 1) - first)


def main():
    model, threads, *cases = sys.argv[1:]
    generator = ctranslate2.Generator(model, device="cpu", compute_type="int8", inter_threads=1,
                                      intra_threads=int(threads))
    for case in cases:
        rate(generator, case)
        print(json.dumps({"case": case, "tokens_per_s": round(rate(generator, case), 2)}), flush=True)


if __name__ == "__main__":
    main()
