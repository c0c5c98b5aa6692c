"""The options of a training run: one dataclass, filled from YAML and the command line.

Defaults are the paper's where it gives them (section 6.4); those of the demo are in
`training/configs/demo.yaml`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from stepagent.envs.react import PromptStyle

LearningRateSchedule = Literal["cosine", "linear", "constant"]


@dataclass
class OptimiserConfig:
    """One stage of gradient descent with AdamW."""

    learning_rate: float = 1e-5
    """Peak learning rate. Full models: 1e-7 to 1e-5; LoRA: 1e-5 to 1e-3; from scratch: 1e-3."""
    schedule: LearningRateSchedule = "cosine"
    """How the learning rate falls from its peak to the end of the stage."""
    warmup_ratio: float = 0.03
    """Share of the updates over which the learning rate rises from 0 to its peak."""
    batch_size: int = 64
    """Samples per update: trajectories in SFT, pairs of actions in reflection."""
    epochs: int = 4
    """Passes over the data. 0 skips the stage."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm. 0.3 to 1 is usual."""
    beta2: float = 0.999
    """AdamW's second decay rate; 0.95 where a model is trained from scratch."""


@dataclass
class IterationConfig(OptimiserConfig):
    """Gradient descent with AdamW, once in each of several iterations."""

    keep_optimiser: bool = False
    """AdamW continues an iteration with the moments of the newest one before it. Off: it starts
    again, since each iteration has a new reference and new data."""


@dataclass
class SftConfig(OptimiserConfig):
    """Supervised fine-tuning on the expert's trajectories (eqs. 2 and 3)."""

    tokens: int = 0
    """Tokens to train on, instead of `epochs` passes (with parts of one): as many as another run,
    whose `summary.json` has them under `budget`. 0: `epochs` decides."""
    select: Literal["last", "dev"] = "last"
    """The policy that SFT ends with: that of its `last` update, or that of the pass which agrees
    best with the expert on trajectories of the `dev` split (step match, then loss; the loss alone
    where the expert's wording varies, of which step match knows one)."""
    patience: int = 3
    """With `select: dev`, SFT ends after as many passes without a better one. 0: never early."""

    microbatch_size: int = 8
    """Trajectories per forward pass; gradients add up to `batch_size`. Fewer need less memory."""
    assistant_only_loss: bool = True
    """Loss on the agent's tokens only (eq. 3). Off: on the observations' too, from which a policy
    from scratch learns to read, and to copy the names that it sees."""


@dataclass
class ReflectionConfig(IterationConfig):
    """Practice (the paper's inspection) and reflection (section 4): how often the agent practises,
    and how it learns from that."""

    learning_rate: float = 5e-7
    """Peak learning rate. With LoRA 10 to 100 times the paper's."""
    schedule: LearningRateSchedule = "constant"
    """How the learning rate falls within an iteration."""
    warmup_ratio: float = 0.0
    """Share of an iteration's updates for warm-up."""
    batch_size: int = 16
    """Pairs (expert's action, agent's action in the same state) per update. An update takes
    complete step trees until it has that many."""
    epochs: int = 1
    """Passes over an iteration's pairs."""
    iterations: int = 3
    """Rounds of practice and reflection. Paper: best at 3 (implicit)."""
    practice: int = 3
    """Actions that the agent practises in every expert state (K). Paper: best at 3."""
    temperature: float = 1.0
    """Of the practice. 0 practises the greedy action only (then K is 1)."""
    top_p: float = 1.0
    """Nucleus sampling in practice: 1 samples from the policy as it is."""
    states: Literal["expert", "own", "both", "successes"] = "expert"
    """Where the agent practises: in the `expert`'s states, as in the paper; in those that it
    reaches in episodes of its `own`, in which the environment's expert is asked; in `both`; or,
    without asking, in the expert's and in those of its own `successes` on `rollouts.unlabelled`
    tasks, the best of `rollouts.samples` episodes each, as if they were the expert's."""
    own_share: float = 0.5
    """`states: both`: share of an iteration's tasks on which it practises in states of its own."""
    expert_acts: float = 0.5
    """DAgger's β: probability that the expert acts in a step of these episodes, in the first
    iteration. 0: the agent plays alone; 1: the expert does."""
    expert_decay: float = 0.5
    """β is multiplied by this from one iteration to the next; 0: only the first is a mixture."""
    expert_seconds: float = 10.0
    """A state in which the expert takes longer ends an episode's states, and is counted."""
    beta: float = 0.1
    """β of eq. 6: how strongly the policy is held to that entering the iteration; 0.01 to 0.5."""
    equal: Literal["action", "tokens", "effect"] = "action"
    """When a practice action counts as the expert's, which leaves nothing to learn from it:
    `action` if an environment reads the same action from both, whatever the thoughts; `tokens`
    (eq. 6 to the letter) only if the replies are the same; `effect` also if it leads to the
    expert's next observation and score, which is played in the environment."""
    preference: Literal["sigmoid", "length_normalised", "positive", "ipo"] = "sigmoid"
    """Loss on a pair (StepAgent-Implicit): `sigmoid` is eq. 6; the others keep the likelihood of
    the expert's action from falling with the agent's (formulas: `methods/losses.py`)."""
    preference_weight: float = 1.0
    """Weight of that loss. 0 leaves `sft_weight` alone: the control `anchor-only`."""
    positive_penalty: float = 5.0
    """λ of `preference: positive`, the cost of a fall of the expert's action; 1 to 50 is usual."""
    weights: Literal["none", "value"] = "none"
    """Weights of the pairs (StepAgent-Implicit): `value` is max(0, Q(expert's) - Q(agent's)), so
    that an action which is as good as the expert's is not rejected. Q is the mean return of
    episodes that take the action behind the expert's replayed steps, then follow the policy."""
    value_rollouts: int = 5
    """Episodes per action, for `weights: value` and `inverse.judge: return`; IPR: 5. Costs
    environment steps: a trajectory of n states with K differing actions each takes up to n (K + 1)
    times as many episodes."""
    expert_value: Literal["rollouts", "return"] = "rollouts"
    """Q of the expert's action: `rollouts` as for the agent's; `return` that of the expert's own
    trajectory, without rollouts, which adds to each weight what the policy loses afterwards."""
    sft_weight: float = 0.0
    """Weight of the expert action's own negative log-likelihood beside eq. 6 (StepAgent-Implicit).
    0: the paper's loss; 0.2 to 1 keeps a small model from forgetting how to write an action."""
    anchor: Literal["pairs", "states"] = "pairs"
    """Where that likelihood is learned (StepAgent-Implicit): where the agent differs from the
    expert (`pairs`), or in all `states` in which it practised, so that what it knows is not
    forgotten. Batches then count states, and a state's pairs share its weight."""
    off_policy_iterations: Literal[0, 1] = 0
    """1: an iteration's practice is drawn while the one before makes its updates, by the policy
    before them, and weighed by importance (`implicit`, `inverse`; in the expert's states). Saves
    time where engines draw (`sampler.urls`). 0: the policy that enters an iteration practises."""
    off_policy_limit: float = 2.0
    """The most that a draw of an earlier policy counts, where its importance weight π / π_b is
    higher. 1 to 10 is usual: lower is steadier, higher less biased."""
    trajectories: int = 0
    """Expert trajectories inspected per iteration, drawn again each time; 0: all."""
    labels: int = 0
    """At most so many states per iteration in which the expert is asked: those of episodes on tasks
    drawn at random, first of tasks without a trajectory of the expert's; about as many are played
    as that takes. Where it is not asked, so many states of its trajectories are used. 0: all."""
    restart: bool = False
    """`dagger`: each iteration trains the untrained model on all that was gathered, as published,
    rather than the policy of the iteration before."""
    updates: int = 0
    """Updates per iteration, in place of `epochs`: passes follow one another until there are as
    many. 0: `epochs` decides."""
    max_tree_tokens: int = 16384
    """Longest packed step tree, in tokens; longer ones are split. Less needs less memory."""
    pack_tokens: int = 4096
    """Trees of an update that together have no more tokens than this share a forward pass; 0: one
    tree per pass. A GPU takes 8,000 to 32,000; less needs less memory."""


@dataclass
class DiscriminatorConfig(IterationConfig):
    """The discriminator D(s, a) of StepAgent-Inverse, trained by eq. 11 in every iteration."""

    backbone: str = "policy"
    """The model that reads state and action: `policy` (the policy's own base with a second adapter;
    where all weights of the policy are trained, a frozen copy of it), or a model's name or
    directory (its tokenizer may differ from the policy's)."""
    rank: int = 8
    """Rank of its adapter (alpha is the same); 0 trains all weights of a separate backbone. 4 to 32
    is usual."""
    learning_rate: float = 1e-4
    """Peak learning rate of adapter and head."""
    schedule: LearningRateSchedule = "constant"
    """How the learning rate falls within an iteration."""
    warmup_ratio: float = 0.0
    """Share of its updates for warm-up."""
    batch_size: int = 64
    """Pairs (the agent's action, the expert's) per update, in complete step trees."""
    epochs: int = 1
    """Passes over the iteration's pairs. More make it more certain, and its reward flatter."""
    loss: Literal["binary", "pairwise"] = "binary"
    """`binary` is eq. 11; `pairwise` compares the agent's action with the expert's in the same
    state, so that nothing but the action can tell them apart."""
    label_smoothing: float = 0.0
    """How far the targets of `binary` are from 1 and 0. 0.05 to 0.2 keeps a slope in the reward
    where D is right."""
    spectral_norm: float = 0.0
    """Largest norm of its head (Miyato et al., 2018): how much the logit can change per unit of the
    last hidden state. 0: unlimited; 0.1 to 1 keeps D from being certain too soon."""
    pack_tokens: int = 4096
    """Trees of an update that together have no more tokens than this share a forward pass."""
    early_stop_accuracy: float = 0.9
    """Its training ends early once its accuracy on both sides reaches this, as a moving average
    over ten updates or so."""
    max_accuracy: float = 0.99
    """Without `inverse.demonstrations` the run stops where its accuracy on both sides reaches this:
    it ranks none of the agent's actions above another then."""
    chance_margin: float = 0.01
    """The run stops where the mean of both accuracies is within this of one half: D cannot tell
    agent from expert."""


@dataclass
class InverseConfig:
    """StepAgent-Inverse (algorithm 1)."""

    reward: Literal["step", "final", "both"] = "step"
    """Table 3: `step` is D's reward for each practice action, `final` the environment's for whole
    episodes that the agent plays, `both` learns from the two."""
    judge: Literal["discriminator", "oracle", "valid", "return"] = "discriminator"
    """What rewards an action: D; `oracle`, a perfect judge: 1 for the expert's action as an
    environment reads it, 0 for any other (a control: what the policy's step makes of a reward
    without fault); `valid`: 1 where the environment understands and allows it; `return`: the mean
    return of `reflection.value_rollouts` episodes that the policy plays behind it."""
    judge_reward: Literal["log_d", "logit"] = "log_d"
    """How D's logit becomes a reward: `log_d` is -log D of eq. 11; `logit` is AIRL's
    log (1 - D) - log D, which keeps falling where D is certain of the agent."""
    demonstrations: bool = True
    """The expert's action is one more member of each state's group, so that it is learned where the
    agent never draws it, and earns no less than the agent's, whatever D says. Off: the agent's own
    draws alone, as in algorithm 1."""
    informative: bool = True
    """D learns from draws that differ from the expert's, and batches count draws that have an
    advantage. Off: every draw counts, as in algorithm 1, and advantages are whitened."""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """The discriminator."""


@dataclass
class PpoConfig:
    """PPO's policy step, in `inverse` and `ppo`; learning rate, batch and epochs are those of
    `reflection`."""

    clip: float = 0.2
    """Ratios beyond 1 ± this carry no gradient. 0.1 to 0.3 is usual."""
    kl: float = 0.05
    """`inverse`: weight of the KL to the policy entering the iteration. `ppo`: reward lost per nat
    of KL to the policy entering the method. 0 to 0.2 is usual."""
    entropy: float = 0.0
    """λ of eq. 10, the weight of the policy's entropy. 0 to 0.02 is usual."""
    baseline: Literal["value", "group"] = "value"
    """What is subtracted from a reward: `value` a linear head's estimate at the state's last token,
    `group` the mean over the actions practised in the state (`ppo`: over the task's episodes)."""
    value_coefficient: float = 0.5
    """Weight of the value head's squared error."""
    credit: Literal["turn", "token"] = "turn"
    """Steps of GAE in whole episodes: `turn` the agent's replies, `token` their tokens, where a
    λ below 1 leaves an episode's first replies without credit."""
    gamma: float = 1.0
    """Discount per turn (or token) in the advantages of whole episodes; 0.99 to 1."""
    lam: float = 0.95
    """λ of GAE there: 1 trusts the episode's reward, 0 the value head."""
    normalise: Literal["scale", "whiten", "none"] = "scale"
    """Of the episodes' advantages: `scale` divides by their root mean square, which keeps their
    signs; `whiten` also subtracts their mean, which can push down a success's own actions."""
    spread_floor: float = 0.1
    """Advantages are divided by no less than this (`scale`, and `inverse`): noise is not blown up
    where all rewards are alike. In units of the reward; 0.05 to 0.3 is usual."""
    critic_learning_rate: float = 1e-4
    """Peak learning rate of the value head, a linear one. Large models: 1e-5 to 1e-4; small ones:
    1e-3."""
    critic_warmup: int = 10
    """Updates of the value head alone, before the first advantages are computed. 0 to 50 is usual;
    without, the first iteration has no baseline."""


@dataclass
class GroupConfig:
    """Advantages within groups of episodes of one task, for `grpo` and `gigpo`; learning rate,
    batch and epochs are those of `reflection`, the size of a group is `rollouts.samples`."""

    reward: Literal["final", "step"] = "final"
    """`grpo`: what is compared, the episodes' scores or the rewards of all their steps."""
    scale: Literal["std", "none"] = "std"
    """Whether advantages are divided by the standard deviation of their group."""
    clip: float = 0.2
    """Ratios below 1 less this carry no gradient. 0.1 to 0.3 is usual."""
    clip_high: float = 0.2
    """The same above 1; 0.28 lets rare actions grow (Yu et al., 2025)."""
    kl: float = 0.04
    """Weight of the KL to the policy that entered the method, per token. 0 to 0.04 is usual."""
    step_weight: float = 1.0
    """`gigpo`: ω, the weight of the advantage among the steps in a state."""
    gamma: float = 0.95
    """`gigpo`: discount per turn of the rewards that follow a step; 0.9 to 1."""


@dataclass
class DistillConfig:
    """On-policy distillation."""

    teacher: str = ""
    """`distill`: the model that is imitated, a directory or a hub id; of the policy's family, since
    it must have the same tokenizer."""


@dataclass
class RolloutConfig:
    """Episodes that the agent plays on the tasks of the expert's trajectories, for methods that
    learn from whole episodes."""

    unlabelled: int = 0
    """Further tasks of the training split that the agent plays, without a trajectory of the
    expert's; a number above what there is takes all. Not for methods that compare each episode with
    the expert's (`dpo`, `spin`, `eto`)."""
    samples: int | None = None
    """Episodes per task (RFT's k). Paper's baselines: 1; RFT 4 to 100. None: the method's own, 8
    for `grpo` and `gigpo`, 1 for the others."""
    temperature: float | None = None
    """Of the episodes. 0 is greedy (then all samples of a task are the same). None: the method's
    own, 0 for `eto` and 1 for the others."""
    top_p: float = 1.0
    """Nucleus sampling; 1 samples from the policy as it is."""
    workers: int = 16
    """Episodes played at once."""
    sound_only: bool = False
    """`rft`, and `implicit` and `inverse` with `states: successes`: of the successes, keep those
    that are not right by luck: every action valid, and an answer only where it was read. See
    `methods.successes.is_sound`."""
    drop_refused: bool = False
    """For the same methods: each success is played again without the actions that the environment
    refused, and is kept in this shorter form if it still succeeds. Thoughts stay as they were."""


@dataclass
class PreferenceConfig(IterationConfig):
    """Preferences between whole trajectories: `dpo`, `spin`, `eto`."""

    trajectories: list[str] = field(default_factory=list)
    """Files of good and bad trajectories, paired by task and reward with each other and with the
    expert's. `dpo` and the first iteration of `eto` learn from them instead of playing episodes,
    the first of `implicit` instead of practising (also files of step pairs). Empty: the agent's
    own."""
    learning_rate: float = 1e-6
    """Peak learning rate of the first iteration. Paper of ETO: 1e-6. With LoRA 10 to 100 times."""
    later_learning_rate: float = 5e-7
    """The same from the second iteration on."""
    beta: float = 0.1
    """β of the logistic loss in the first iteration."""
    later_beta: float = 0.5
    """β from the second iteration on (ETO)."""
    iterations: int = 3
    """Iterations of `spin` and `eto`; `dpo` has one."""
    batch_size: int = 16
    """Pairs of trajectories per update."""
    microbatch_size: int = 1
    """Pairs per forward pass; gradients add up to `batch_size`. Fewer need less memory."""
    epochs: int = 3
    """Passes over an iteration's pairs."""
    cut: Literal["auto", "always", "never"] = "auto"
    """Whether `eto` cuts the agent's rejected trajectories. `auto`: except on ALFWorld, as ETO."""
    extra_rounds: int = 5
    """ETO cuts them to the expert's number of steps and this many more."""


@dataclass
class LoraSettings:
    """Low-rank adapters (Hu et al., 2021); weights in float32 on a base in the policy's dtype."""

    r: int = 0
    """Rank. 0 trains all weights; 8 to 64 is usual."""
    alpha: int = 32
    """Scale of the adapter is alpha / r."""
    dropout: float = 0.0
    """Dropout before the adapter, in SFT only: other stages compare log-probabilities."""
    target_modules: str = "all-linear"
    """Layers with an adapter: "all-linear", or a comma list such as q_proj,v_proj."""


@dataclass
class TinyConfig:
    """Shape of the small Llama that is trained from scratch (`training/tiny.py`)."""

    hidden_size: int = 256
    """Width of the model. Usual range 64 to 512."""
    layers: int = 4
    """Decoder layers."""
    heads: int = 8
    """Attention heads; divides hidden_size into an even number."""
    vocabulary: int = 2048
    """Tokens of the byte-pair tokenizer that is trained on the trajectories."""
    context: int = 4096
    """Longest sequence, in tokens."""


@dataclass
class PolicyConfig:
    """The language model that is trained."""

    model: str = "smollm2"
    """`smollm2`, `nano` (a small Llama that has read the environments), `tiny` (a small Llama from
    scratch), a directory, or a hub id."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """`bfloat16`: frozen weights are kept in it, and where all weights are trained, forward and
    backward passes compute in it (autocast); trained weights are always kept in float32. `auto`:
    bfloat16 for frozen weights where the device is faster in it. Unless `float32`, a GPU multiplies
    float32 as TF32."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, …"""
    max_new_tokens: int = 256
    """Longest reply in tokens, in practice and in evaluation."""
    template: dict[str, Any] = field(default_factory=dict)
    """Arguments of its chat template, such as `{enable_thinking: false}`, the same in training, in
    practice and in evaluation. Two are ours: `history_thoughts` (thoughts of earlier turns stay as
    the `template` has it, or: `keep`, `drop`) and `date` (today for the template, YYYY-MM-DD)."""
    gradient_checkpointing: bool = False
    """Trades a third more computation for much less memory."""
    lora: LoraSettings = field(default_factory=LoraSettings)
    """Adapters instead of all weights."""
    tiny: TinyConfig = field(default_factory=TinyConfig)
    """Shape of the model `tiny`."""


@dataclass
class ExpertConfig:
    """Where the expert's trajectories come from."""

    trajectories: str = ""
    """A file of `stepagent collect`; empty: collected by the run, into its directory."""
    limit: int = 0
    """At most this many, drawn by the seed; 0: all."""
    min_reward: float = 1.0
    """Trajectories that scored less are left out, and counted. The agent's own episodes are
    successes from this score on."""
    workers: int = 8
    """Environments played at once while collecting."""
    wording: Literal["fixed", "varied"] = "fixed"
    """Its thoughts: as it says them, or `varied`: each in words drawn by (seed, task, step) from
    several that say the same, so that they cannot be learned by heart."""


@dataclass
class EvaluationConfig:
    """Scoring of the policies on tasks that they were not trained on."""

    env: str = ""
    """Environment id; empty: the one trained on."""
    env_args: dict[str, Any] = field(default_factory=dict)
    """Its arguments; used where `env` is given."""
    split: Literal["train", "dev", "test"] = "test"
    """Split to score on."""
    limit: int = 0
    """Tasks, drawn by the seed; 0: the entire split."""
    agents: list[str] = field(default_factory=list)
    """Agents scored on the same tasks as the policy, such as random and expert."""
    agreement: int = 0
    """Expert trajectories of the dev split on which the policy's agreement with the expert is
    measured after each stage, and SFT chosen with `sft.select: dev` (then 200 for 0); 0: none. 100
    or more tell methods apart."""
    matched_sft: bool = False
    """Also score the control `sft-matched`: SFT alone on as many tokens as the entire run was
    trained on, which is trained for it in the folder of that name. Without it a gain may be that of
    more training. Nothing for `sft` itself."""
    every_iteration: bool = True
    """Score after SFT and after every iteration, not only at the end."""
    workers: int = 16
    """Episodes played at once."""
    temperature: float = 0.0
    """0: greedy, as the paper."""


@dataclass
class SamplerConfig:
    """Where the policy's replies are drawn, in practice, in its own episodes and in scoring."""

    urls: list[str] = field(default_factory=list)
    """Addresses of vLLM servers that draw them, one engine each, sharing the load; the trainer says
    how they are started. Empty: the trainer draws them itself."""
    shared: str = ""
    """Folder that trainer and engines see under the same path, where each version of the policy is
    published; empty: `published/` in the run's directory."""
    concurrency: int = 64
    """Requests under way at once, per engine and process of the run. 16 to 256 is usual."""
    timeout: float = 600.0
    """Seconds after which an engine that has not answered counts as out."""
    patience: float = 600.0
    """Seconds to wait for an engine where none answers, before the run stops; the same command
    again continues it."""


@dataclass
class Config:
    """Trains a policy: expert data, SFT, then one method, scored at each stage."""

    output: str
    """Run directory. Running the same configuration again resumes where it stopped."""
    method: str = "implicit"
    """`implicit` and `inverse` are StepAgent (eq. 6; algorithm 1); `sft`, `ppo`, `dpo`, `rft`,
    `spin`, `nat` and `eto` its baselines; `dagger`, `grpo`, `gigpo` and `distill` go beyond the
    paper. On the command line also a variant such as `sft-best` or `anchor-only`. Or `module:NAME`,
    a custom `Method`."""
    env: str = "stepagent/ScienceWorld-v0"
    """Environment to learn, or `module:Namespace/Name-v0` for a custom one."""
    env_args: dict[str, Any] = field(default_factory=dict)
    """Its arguments, such as `tasks: find-plant,find-animal`."""
    seed: int = 0
    """Source of all randomness of the run."""
    prompt: PromptStyle = field(default_factory=PromptStyle)
    """Which parts of the environment's prompt the policy sees."""
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    """The model."""
    expert: ExpertConfig = field(default_factory=ExpertConfig)
    """Expert trajectories."""
    sft: SftConfig = field(default_factory=SftConfig)
    """Supervised fine-tuning."""
    reflection: ReflectionConfig = field(default_factory=ReflectionConfig)
    """Practice and reflection; also the policy's optimiser in `inverse` and `ppo`."""
    inverse: InverseConfig = field(default_factory=InverseConfig)
    """StepAgent-Inverse."""
    ppo: PpoConfig = field(default_factory=PpoConfig)
    """PPO's step in `inverse` and `ppo`."""
    group: GroupConfig = field(default_factory=GroupConfig)
    """Advantages within groups of episodes."""
    distill: DistillConfig = field(default_factory=DistillConfig)
    """On-policy distillation."""
    rollouts: RolloutConfig = field(default_factory=RolloutConfig)
    """Episodes of the agent's own."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """Where replies are drawn."""
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    """Preferences between trajectories."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Scoring."""
    checkpoint_seconds: float = 300.0
    """Time between checkpoints within a stage. A killed run loses at most this much work."""
    report_to: list[str] = field(default_factory=lambda: ["tensorboard"])
    """Where metrics go beside `metrics.jsonl`: trackers of accelerate, such as `tensorboard`,
    `wandb`, `trackio` and `mlflow`, which are installed and logged in to as they say themselves."""
    peak_tflops: float = 0.0
    """What a process's device can do, in TFLOP/s of dense bfloat16 products, for the share of it
    that updates reach. 0: by the GPU's name, where that is known; else the share is left out."""
    push_to_hub: str = ""
    """Repository of the Hugging Face hub (owner/name) that the final policy is pushed to, private,
    with a card made from the run; empty: none."""
    keep_policies: bool = True
    """Keep the policy of every stage; off: only the last (`final/`)."""
