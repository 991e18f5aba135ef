"""Every sketch of the recipe language parses and expands."""

from __future__ import annotations

from services.arms import expand, pairs
from services.recipe import loads

# ruff: noqa: E501

DMT = """
models: {l7: {id: "hub:llama-7b"}, l13: {id: "hub:llama-13b", zero: 3}}
data:   {math: {from: gsm8k_rft_u33b}, code: {from: code_alpaca}, chat: {from: sharegpt}}
let:    {k: none}
stages:
  special: {mix: {math: all, code: all}}
  general: {mix: {chat: all, math: $k, code: $k}, init: special, schedule: restart, optimiser: restart}
train:    {model: l7, epochs: 3, lr: 2e-5, schedule: cosine, warmup: 0.03, global_batch: 128, max_len: 2048}
evaluate: {tasks: [gsm8k, humaneval, mt_bench], at: [base, special, general]}
arms:     {grid: {k: [none, 1/256, 1/64, 1/16, 1/4, all], train.model: [l7, l13]}}
repeat:   {seeds: [0, 1, 2], vary: [sample, order]}
"""

DIVERSIFY = """
models: {llama2: {id: "hub:Llama-2-7b-hf"}, rm: {id: "hub:FsfairX-LLaMA3-RM-v0.1"}, gpt4: {api: openai/gpt-4}}
let: {pick: iter, scorer: {perplexity: {model: current}}}
data:
  pool: {from: wizardlm, do: [{score: {deita: q}}, {embed: {encoder: cohere-v3, text: both}}, {cluster: {k: 512}}]}
  rand: {from: pool, do: [{select: {method: random, amount: 10000 rows}}]}
  iter: {from: pool, do: [{iterate: {amount: 10000 rows, rounds: 3, first: kmq, later: uniform, update: paper,
          train: {from: base, epochs: 3}, respond: {model: current, rows: selected}, score: $scorer}}]}
stages: {sft: {mix: {$pick: all}}}
train: {model: llama2, epochs: 3, lr: 2e-5, global_batch: 64, max_len: 2048}
evaluate: {tasks: paper_six, at: [sft, iter@1, iter@2, iter@3]}
arms: {add: {random: {pick: rand}, ppl: {}, gpt: {scorer: {judge: {model: gpt4, scale: [1, 10]}}}, rm: {scorer: {reward: {model: rm}}}}}
"""

S3FT = """
models: {m: {id: "hub:Mistral-7B-Instruct-v0.2"}}
let: {task: gsm8k, policy: s3ft, judge: numeric, r: 8}
data: {d: {from: $task/train, do: [{respond: {model: m, policy: $policy, judge: $judge, prompts: s3ft/$task, decoding: greedy}}]}}
stages: {sft: {mix: {d: all}}}
train: {model: m, lora: {r: $r, alpha: 16, dropout: 0.1}}
evaluate: {tasks: [$task/test], retention: [mmlu, truthfulqa, hellaswag, winogrande], at: [base, sft]}
arms:
  grid: {task: [gsm8k, mbpp, nq], policy: [gold, ssr, sdft, s3ft], r: [8, 64]}
  when: [{task: mbpp, then: {judge: code}}, {task: nq, then: {judge: {llm: m}}}]
contrasts: [{a: {policy: s3ft}, b: {policy: gold}, metric: retention.drop, expect: less}]
"""

MODELLING = """
models: {llama2: {id: "hub:Llama-2-7b-hf"}, llama2-chat: {id: "hub:Llama-2-7b-chat-hf"}}
let: {set: lima, loss: it}
data: {d: {from: im/$set}, tulu: {from: tulu_v2, do: [{sample: 1/10}]}}
stages: {sft: {mix: {d: all}, objective: {preset: sft, normalise: row}}}
train: {model: llama2, epochs: 2, lr: 2e-5, schedule: linear, warmup: 0.03, global_batch: 128, max_len: 2048}
evaluate: {tasks: im_18_by_group, judged: [mt_bench, alpaca_eval_1, alpaca_eval_2], output_loss: [d, tulu], at: [base, sft]}
arms:
  grid: {set: [lima, less_mmlu, less_tydiqa, less_bbh, alpagasus_alpaca5k, alpagasus_dolly3k, alpagasus_dolly9k], loss: [it, neftune, im, im_neftune]}
  when: [{loss: [neftune, im_neftune], then: {train.neftune: 5}}, {loss: [im, im_neftune], then: {stages.sft.objective.preset: im}}, {set: lima, then: {train.epochs: 10}}]
  add:  {base: {stages: none}, chat: {stages: none, train.model: llama2-chat}}
"""

TOGETHER = """
data:
  math: {from: gsm8k, do: [{holdout: {amount: 200 rows, by: prompt}}, {decontaminate: [gsm8k/test]}, {respond: {policy: s3ft, judge: numeric}}]}
  code: {from: [mbpp, gpteacher], do: [{holdout: {amount: 100 rows}}, {select: {method: kmq, amount: 2000 rows, by: source}}]}
  chat: {from: dolly, do: [{holdout: {amount: 200 rows}}, {select: {method: kmq, amount: 4000 rows, clusters: auto}}]}
  spec: {from: [math, code], do: [{select: {method: kmq, amount: 5000 rows, min_per_source: 1000}}]}
stages:
  special: {mix: {spec: all}, objective: sft}
  general: {mix: {chat: all, spec: 1/64}, init: special, objective: {preset: im, by_source: {math: sft, code: sft}}, train: {lr: 1e-5}}
arms: {ablate: {selection: {data.*.select.method: random}, targets: {data.math.respond.policy: gold}, order: {strategy: multi_task}, loss: {stages.general.objective: sft}}}
"""


def test_dmt_table_5() -> None:
    arms = expand(loads(DMT))
    assert len(arms) == 6 * 2 * 3
    none = next(a for a in arms if a.name == "k=none,model=l13,seed=2")
    assert list(none.document.stages["general"].mix) == ["chat"]
    assert none.document.model_for("general") == "l13"
    assert none.seeds == {"sample": 2, "order": 2, "init": 0, "generation": 0, "judge": 0}
    replay = next(a for a in arms if a.settings == {"k": "1/256", "train.model": "l7"})
    assert str(replay.document.stages["general"].mix["math"]) == "1/256"
    assert replay.document.train_for("general").lr == 2e-5


def test_diversify_and_conquer_table_7() -> None:
    arms = {arm.name: arm.document for arm in expand(loads(DIVERSIFY))}
    assert list(arms) == ["random", "ppl", "gpt", "rm"]
    assert list(arms["random"].stages["sft"].mix) == ["rand"]
    assert list(arms["rm"].stages["sft"].mix) == ["iter"]
    assert [point.label for point in arms["ppl"].points()] == ["sft", "iter@1", "iter@2", "iter@3"]


def test_s3ft_tables_2_to_4() -> None:
    recipe = loads(S3FT)
    arms = expand(recipe)
    assert len(arms) == 3 * 4 * 2
    reading = next(a for a in arms if a.settings == {"task": "nq", "policy": "ssr", "r": "64"}).document
    respond = reading.data["d"].do[0].config
    assert (reading.data["d"].from_, respond.prompts, respond.policy) == ("nq/train", "s3ft/nq", "ssr")
    assert "llm" in str(respond.judge)
    lora = reading.train_for("sft").lora
    assert lora is not None
    assert lora.r == 64
    assert len(pairs(recipe.contrasts[0], arms)) == 6


def test_instruction_modelling_tables_1_and_4() -> None:
    arms = {arm.name: arm.document for arm in expand(loads(MODELLING))}
    assert len(arms) == 7 * 4 + 2
    both = arms["set=lima,loss=im_neftune"]
    assert (both.objective_for("sft").preset, both.objective_for("sft").neftune) == ("im", 5)
    assert both.objective_for("sft").normalise == "row"
    assert both.train_for("sft").epochs == 10
    assert arms["set=less_bbh,loss=it"].train_for("sft").epochs == 2
    assert arms["set=less_bbh,loss=it"].objective_for("sft").neftune == 0
    assert arms["base"].stages == {}
    assert arms["chat"].model_for() == "llama2-chat"
    assert [point.kind for point in arms["chat"].points()] == ["base"]


def test_all_four_together() -> None:
    arms = {arm.name: arm.document for arm in expand(loads(TOGETHER))}
    assert list(arms) == ["full", "selection", "targets", "order", "loss"]
    full = arms["full"]
    assert set(full.objective_for("general").by_source) == {"gsm8k", "mbpp", "gpteacher"}
    assert full.train_for("general").lr == 1e-5
    assert full.model_for() == "smollm2-135m-instruct"
    random = arms["selection"]
    assert [random.data[t].do[-1].config.method for t in ("code", "chat", "spec")] == ["random"] * 3
    assert arms["targets"].data["math"].do[2].config.policy == "gold"
    assert {t: str(a) for t, a in arms["order"].stages["general"].mix.items()} == {"spec": "all", "chat": "all"}
    assert list(arms["order"].stages) == ["general"]
    assert arms["loss"].objective_for("general").preset == "sft"
