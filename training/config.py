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
    """Peak learning rate. 1e-7 to 1e-5 is usual where all weights of a pre-trained model are
    trained, 1e-5 to 1e-3 with LoRA, 1e-3 from scratch."""
    schedule: LearningRateSchedule = "cosine"
    """Whether the learning rate falls to 0 by the end of the stage (`cosine`, `linear`) or stays at
    its peak (`constant`)."""
    warmup_ratio: float = 0.03
    """Share of the updates over which the learning rate first rises from 0 to its peak. Without
    effect if `schedule` is `constant`."""
    batch_size: int = 64
    """Samples per update: trajectories in SFT, pairs of actions in reflection."""
    epochs: int = 4
    """Passes over the data. 0 skips the stage."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    max_grad_norm: float = 1.0
    """Largest norm of the gradient; a larger one is scaled down to it. 0.3 to 1 is usual."""
    beta2: float = 0.999
    """AdamW's second decay rate; 0.95 is usual where a model is trained from scratch."""


@dataclass
class IterationConfig(OptimiserConfig):
    """Gradient descent with AdamW, once in each of several iterations."""

    keep_optimiser: bool = False
    """AdamW starts an iteration with the moments of the last iteration that was trained. Off: with
    new moments, since each iteration has a new reference and new data."""


@dataclass
class SftConfig(OptimiserConfig):
    """Supervised fine-tuning on the expert's trajectories (eqs. 2 and 3)."""

    tokens: int = 0
    """Number of tokens to train on, in place of `epochs`; the last pass may be incomplete. To match
    another run, take `tokens` under `budget` in its `summary.json`. 0: `epochs` decides."""
    select: Literal["last", "dev"] = "last"
    """The policy that SFT ends with: that of the `last` update, or that of the pass that agrees
    best with the expert on trajectories of the `dev` split. Agreement is the step match, then the
    loss; where the expert's wording varies it is the loss alone, as step match knows only one
    wording."""
    patience: int = 3
    """With `select: dev`, SFT ends once this many passes have brought no better one. 0: never
    early."""

    microbatch_size: int = 8
    """Trajectories per forward pass; gradients are summed until `batch_size` is reached. Fewer need
    less memory."""
    assistant_only_loss: bool = True
    """Take the loss on the agent's tokens alone (eq. 3). Off: on the observations too, which
    teaches a policy from scratch to read, and to copy the names that it sees."""


@dataclass
class ReflectionConfig(IterationConfig):
    """Practice (the paper calls it inspection) and reflection (section 4): how much the agent
    practises, and how it learns from that."""

    learning_rate: float = 5e-7
    """Peak learning rate; the default is the paper's. With LoRA, 10 to 100 times as much."""
    schedule: LearningRateSchedule = "constant"
    """Whether the learning rate falls to 0 within an iteration (`cosine`, `linear`) or is
    `constant`."""
    warmup_ratio: float = 0.0
    """Share of an iteration's updates for warm-up. Without effect if `schedule` is `constant`."""
    batch_size: int = 16
    """Pairs (expert's action, agent's action in the same state) per update. An update takes
    complete step trees until it has at least this many. `inverse` and `ppo` count the agent's
    actions instead, `dagger` states, and `grpo`, `gigpo` and `distill` episodes."""
    epochs: int = 1
    """Passes over the data of an iteration."""
    iterations: int = 3
    """Rounds of practice and reflection. The paper's best: 3 for `implicit`, 7 for `inverse`."""
    practice: int = 3
    """Actions that the agent practises in each state (K). The paper's best is 3."""
    temperature: float = 1.0
    """Sampling temperature of the practice. 0: the greedy action alone, so K is 1."""
    top_p: float = 1.0
    """Nucleus sampling in practice. 1: sample from the policy as it is."""
    states: Literal["expert", "own", "both", "successes"] = "expert"
    """The states in which the agent practises. `expert`: those of the expert's trajectories, as in
    the paper. `own`: those that it reaches in episodes of its own, in which the environment's
    expert is asked what to do. `both`: `expert` on some tasks, `own` on the others. `successes`:
    the expert's and, without asking anyone, those of its own successes on `rollouts.unlabelled`
    tasks; the best of `rollouts.samples` episodes on each counts as if it were the expert's."""
    own_share: float = 0.5
    """With `states: both`, the share of an iteration's tasks on which the agent practises in its
    own states. All tasks without an expert trajectory are among these."""
    expert_acts: float = 0.5
    """DAgger's β: the probability that the expert takes a step in an episode of the agent's own
    (`states: own` or `both`, and `dagger`), in the first iteration. 0: the agent plays alone; 1:
    the expert does."""
    expert_decay: float = 0.5
    """β is multiplied by this from one iteration to the next. 0: the expert acts in the first
    iteration only."""
    expert_seconds: float = 10.0
    """Seconds that the expert may take in a state. Where it takes longer, that state and the later
    ones of the episode are left out; such episodes are counted."""
    beta: float = 0.1
    """β of eq. 6: how strongly the policy is held to the one that entered the iteration. 0.01 to
    0.5 is usual."""
    equal: Literal["action", "tokens", "effect"] = "action"
    """When a practice action counts as the expert's, so that there is nothing to learn from it.
    `action`: an environment reads the same action from both replies, whatever their thoughts.
    `tokens` (eq. 6 to the letter): the replies are the same. `effect`: as `action`, or the action
    leads to the expert's next observation and score when it is played in the environment."""
    preference: Literal["sigmoid", "length_normalised", "positive", "ipo"] = "sigmoid"
    """Loss on a pair (StepAgent-Implicit). `sigmoid` is eq. 6; the others keep the likelihood of
    the expert's action from falling with that of the agent's (formulas in
    `training/methods/losses.py`)."""
    preference_weight: float = 1.0
    """Weight of the loss `preference`. With 0 only the one of `sft_weight` is left: the control
    `anchor-only`."""
    positive_penalty: float = 5.0
    """λ of `preference: positive`: what it costs if the expert's action becomes less likely. 1 to
    50 is usual."""
    weights: Literal["none", "value"] = "none"
    """Weights of the pairs (StepAgent-Implicit). `value`: max(0, Q(expert's action) - Q(agent's
    action)), so that an action as good as the expert's is not rejected. Q is the mean return of
    episodes that repeat the expert's steps up to the state, take the action, then follow the
    policy. `none`: all weigh the same."""
    value_rollouts: int = 5
    """Episodes per action, for `weights: value` and `inverse.judge: return`. IPR has 5. They cost
    environment steps: a trajectory of n states, each with K actions that differ from the expert's,
    takes up to n (K + 1) times this many episodes."""
    expert_value: Literal["rollouts", "return"] = "rollouts"
    """Q of the expert's action. `rollouts`: measured like the agent's. `return`: that of the
    expert's own trajectory, without episodes; what the policy loses later then adds to each
    weight."""
    sft_weight: float = 0.0
    """Weight of the negative log-likelihood of the expert's action, which is added to eq. 6
    (StepAgent-Implicit). 0: the paper's loss. 0.2 to 1 keeps a small model from forgetting how to
    write an action."""
    anchor: Literal["pairs", "states"] = "pairs"
    """Where the likelihood of `sft_weight` is learned (StepAgent-Implicit). `pairs`: where the
    agent's action differs from the expert's. `states`: in all states in which the agent practised,
    so that it does not forget what it knows; batches then count states, and the pairs of a state
    share its weight."""
    off_policy_iterations: Literal[0, 1] = 0
    """1: the practice of an iteration is drawn during the updates of the one before, by the policy
    before these updates, and is weighted by importance (`implicit` and `inverse`, in the expert's
    states). This saves time where engines draw (`sampler.urls`). 0: the policy that enters an
    iteration practises."""
    off_policy_limit: float = 2.0
    """Largest importance weight π / π_b of an action that an earlier policy π_b drew. 1 to 10 is
    usual: lower is steadier, higher less biased."""
    trajectories: int = 0
    """Expert trajectories to practise in per iteration, drawn anew for each; 0: all. Where `states`
    is `own` or `both`, and in `dagger`, `ppo`, `grpo`, `gigpo` and `distill`, it is the number of
    tasks that the agent plays per iteration."""
    labels: int = 0
    """States per iteration in which the expert is asked, at most. They belong to episodes on tasks
    drawn at random, those without an expert trajectory first; about as many episodes are played as
    that takes. Where nobody is asked, at most this many states of the expert's trajectories are
    used. 0: no limit."""
    restart: bool = False
    """`dagger`: each iteration trains the untrained model on all that was gathered, as published.
    Off: it continues with the policy of the iteration before."""
    updates: int = 0
    """Updates per iteration, in place of `epochs`: passes are repeated until there are this many.
    0: `epochs` decides."""
    max_tree_tokens: int = 16384
    """Longest step tree, in tokens; longer ones are split. Less needs less memory."""
    pack_tokens: int = 4096
    """Trees of an update share a forward pass as long as together they have no more tokens than
    this; 0: one tree per pass. On a GPU 8,000 to 32,000 is usual; less needs less memory."""


@dataclass
class DiscriminatorConfig(IterationConfig):
    """The discriminator D(s, a) of StepAgent-Inverse, trained by eq. 11 in every iteration."""

    backbone: str = "policy"
    """The model that reads state and action. `policy`: the policy's own base with a second adapter;
    where all weights of the policy are trained, a copy of the policy as it entered the method. Or a
    model's name or directory, whose tokenizer may differ from the policy's."""
    rank: int = 8
    """Rank of its adapter; alpha is the same. 4 to 32 is usual. 0: all weights of the backbone are
    trained, which must not be the policy's own base."""
    learning_rate: float = 1e-4
    """Peak learning rate of the adapter (or of all weights) and the head."""
    schedule: LearningRateSchedule = "constant"
    """Whether the learning rate falls to 0 within an iteration (`cosine`, `linear`) or is
    `constant`."""
    warmup_ratio: float = 0.0
    """Share of its updates for warm-up. Without effect if `schedule` is `constant`."""
    batch_size: int = 64
    """Pairs (agent's action, expert's action) per update, in complete step trees."""
    epochs: int = 1
    """Passes over an iteration's pairs. More make D more certain, and its reward flatter."""
    loss: Literal["binary", "pairwise"] = "binary"
    """`binary` is eq. 11. `pairwise` compares the agent's action with the expert's in the same
    state, so that nothing but the action can tell them apart."""
    label_smoothing: float = 0.0
    """With `loss: binary`, how far the targets are from 1 and 0. 0.05 to 0.2 keeps a slope in the
    reward where D is right."""
    spectral_norm: float = 0.0
    """Largest norm of the head (Miyato et al., 2018): how much the logit can change per unit of the
    last hidden state. 0: unlimited; 0.1 to 1 keeps D from becoming certain too soon."""
    pack_tokens: int = 4096
    """Trees of an update share a forward pass as long as together they have no more tokens than
    this."""
    early_stop_accuracy: float = 0.9
    """The training of an iteration ends early once the accuracy on both sides reaches this, as a
    moving average over about ten updates."""
    max_accuracy: float = 0.99
    """Without `inverse.demonstrations`, the run stops once the accuracy on both sides reaches this:
    D then ranks none of the agent's actions above another. (With `inverse.reward: both` it does not
    stop, but learns from final rewards alone in that iteration.)"""
    chance_margin: float = 0.01
    """The run stops if the mean of both accuracies is within this of one half: D cannot tell the
    agent from the expert. (With `inverse.reward: both`, as for `max_accuracy`.)"""


@dataclass
class InverseConfig:
    """StepAgent-Inverse (algorithm 1)."""

    reward: Literal["step", "final", "both"] = "step"
    """What the policy learns from (table 3). `step`: a reward for each practice action, by default
    D's. `final`: the environment's reward for whole episodes that the agent plays. `both`: the two
    together."""
    judge: Literal["discriminator", "oracle", "valid", "return"] = "discriminator"
    """What rewards an action. `discriminator`: D. `oracle`, a perfect judge: 1 where an environment
    reads the expert's action from it, else 0 (a control: what the policy step makes of a faultless
    reward). `valid`: 1 where the environment understands and allows it, else 0. `return`: the mean
    return of `reflection.value_rollouts` episodes in which the policy plays on after it."""
    judge_reward: Literal["log_d", "logit"] = "log_d"
    """How D's logit becomes a reward. `log_d`: -log D, by eq. 11. `logit`: AIRL's log (1 - D) - log
    D, which keeps falling where D is certain that the action is the agent's."""
    demonstrations: bool = True
    """The expert's action joins the practice actions of each state in which one of them differs
    from it. So it is learned even where the agent never draws it, and it earns no less than theirs,
    whatever D says. Off: the agent's own actions alone, as in algorithm 1."""
    informative: bool = True
    """D learns only from actions that differ from the expert's, and batches count only actions that
    have an advantage. Off: all actions count, as in algorithm 1, and advantages are whitened (mean
    0, standard deviation 1)."""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """The discriminator."""


@dataclass
class PpoConfig:
    """PPO's policy step, in `inverse` and `ppo`. Learning rate, batch and epochs are those of
    `reflection`."""

    clip: float = 0.2
    """Clipping range of the ratio π_θ / π_old: 1 ± this. 0.1 to 0.3 is usual."""
    kl: float = 0.05
    """`inverse`: weight of the KL to the policy that entered the iteration. In whole episodes
    (`ppo`, and final rewards of `inverse`): reward lost per nat of KL to the policy that entered
    the method. 0 to 0.2 is usual."""
    entropy: float = 0.0
    """λ of eq. 10, the weight of the policy's entropy. 0 to 0.02 is usual."""
    baseline: Literal["value", "group"] = "value"
    """What is subtracted from a reward. `value`: a linear head's estimate at the state's last
    token. `group`: the mean over the actions practised in the state (in whole episodes, over the
    episodes of the task)."""
    value_coefficient: float = 0.5
    """Weight of the value head's squared error."""
    credit: Literal["turn", "token"] = "turn"
    """What counts as one step of GAE in whole episodes. `turn`: a reply of the agent. `token`: a
    token of it; a λ below 1 then leaves the first replies of an episode without credit."""
    gamma: float = 1.0
    """Discount per turn (or token) in whole episodes. 0.99 to 1 is usual."""
    lam: float = 0.95
    """λ of GAE in whole episodes: 1 trusts the episode's reward, 0 the value head."""
    normalise: Literal["scale", "whiten", "none"] = "scale"
    """How advantages of whole episodes are scaled. `scale`: divided by their root mean square,
    which keeps their signs. `whiten`: to mean 0 and standard deviation 1, which can push down the
    actions of a success. `none`: not at all."""
    spread_floor: float = 0.1
    """Advantages are divided by no less than this (`normalise: scale`, and `inverse`), so that
    noise is not blown up where all rewards are alike. In units of the reward; 0.05 to 0.3 is
    usual."""
    critic_learning_rate: float = 1e-4
    """Peak learning rate of the value head, which is linear. 1e-5 to 1e-4 for large models, 1e-3
    for small ones."""
    critic_warmup: int = 10
    """Updates of the value head alone, before the first advantages are computed. 0 to 50 is usual;
    with 0 the first iteration has no baseline."""


@dataclass
class GroupConfig:
    """Advantages within groups of episodes of one task, for `grpo` and `gigpo`. Learning rate,
    batch and epochs are those of `reflection`; the size of a group is `rollouts.samples`."""

    reward: Literal["final", "step"] = "final"
    """`grpo`: what is compared, the scores of the episodes (`final`) or the rewards of all their
    steps (`step`)."""
    scale: Literal["std", "none"] = "std"
    """Whether advantages are divided by the standard deviation of their group (`std`) or not
    (`none`)."""
    clip: float = 0.2
    """Clipping range of the ratio π_θ / π_old below 1. 0.1 to 0.3 is usual."""
    clip_high: float = 0.2
    """Clipping range of the ratio above 1; 0.28 lets rare actions grow (Yu et al., 2025)."""
    kl: float = 0.04
    """Weight of the KL to the policy that entered the method, per token. 0 to 0.04 is usual."""
    step_weight: float = 1.0
    """`gigpo`: ω, the weight of the advantage among the steps taken in the same state."""
    gamma: float = 0.95
    """`gigpo`: discount per turn of the rewards that follow a step. 0.9 to 1 is usual."""


@dataclass
class DistillConfig:
    """On-policy distillation."""

    teacher: str = ""
    """`distill`: the model that is imitated, a directory or a hub id. It must have the policy's
    tokenizer, so take one of the policy's family."""


@dataclass
class RolloutConfig:
    """Episodes that the agent plays, for methods that learn from whole episodes: on the tasks of
    the expert's trajectories and on `unlabelled` others."""

    unlabelled: int = 0
    """Further tasks of the training split, without an expert trajectory, that the agent plays; a
    number above what there is takes all. Not for methods that compare each episode with the
    expert's (`dpo`, `spin`, `eto`)."""
    samples: int | None = None
    """Episodes per task (RFT's k). The paper's baselines have 1; for RFT 4 to 100 are usual. null:
    the method's own, which is 8 for `grpo` and `gigpo` and 1 for the others."""
    temperature: float | None = None
    """Sampling temperature of the episodes. 0 is greedy: all samples of a task would be the same,
    so there may be only one. null: the method's own, which is 0 for `eto` and 1 for the others."""
    top_p: float = 1.0
    """Nucleus sampling. 1: sample from the policy as it is."""
    workers: int = 16
    """Episodes played at the same time."""
    sound_only: bool = False
    """For `rft`, and for `implicit` and `inverse` with `states: successes`: keep only sound
    successes, not lucky ones. In a sound one every action is valid, and an answer is given only
    after it was read (`methods.successes.is_sound`)."""
    drop_refused: bool = False
    """For the methods of `sound_only`: each success with refused actions is played again without
    these, and is kept in this shorter form if it scores no less. Thoughts stay as they were."""


@dataclass
class PreferenceConfig(IterationConfig):
    """Preferences between whole trajectories: `dpo`, `spin`, `eto`."""

    trajectories: list[str] = field(default_factory=list)
    """Files of good and bad trajectories, which are paired with each other and with the expert's,
    by task and reward. `dpo` and the first iteration of `eto` learn from them instead of playing
    episodes; the first iteration of `implicit` does so instead of practising, and also takes files
    of step pairs. Empty: the agent's own."""
    learning_rate: float = 1e-6
    """Peak learning rate of the first iteration. ETO's paper has 1e-6. With LoRA, 10 to 100 times
    as much."""
    later_learning_rate: float = 5e-7
    """Peak learning rate from the second iteration on."""
    beta: float = 0.1
    """β of the logistic loss: in the first iteration of `eto`, throughout in `dpo` and `spin`."""
    later_beta: float = 0.5
    """β of `eto` from the second iteration on."""
    iterations: int = 3
    """Iterations of `spin` and `eto`; `dpo` has one."""
    batch_size: int = 16
    """Pairs of trajectories per update."""
    microbatch_size: int = 1
    """Pairs per forward pass; gradients are summed until `batch_size` is reached. Fewer need less
    memory."""
    epochs: int = 3
    """Passes over an iteration's pairs."""
    cut: Literal["auto", "always", "never"] = "auto"
    """Whether `eto` cuts rejected trajectories of the agent. `auto`: except on ALFWorld, as ETO
    does."""
    extra_rounds: int = 5
    """`eto` cuts rejected trajectories to the expert's number of steps and this many more."""


@dataclass
class LoraSettings:
    """Low-rank adapters (Hu et al., 2021), with weights in float32 on a base in the policy's
    dtype."""

    r: int = 0
    """Rank. 0 trains all weights; 8 to 64 is usual."""
    alpha: int = 32
    """The adapter is scaled by alpha / r."""
    dropout: float = 0.0
    """Dropout before the adapter. Only in supervised fine-tuning: other stages compare
    log-probabilities."""
    target_modules: str = "all-linear"
    """Layers that get an adapter: "all-linear", or a comma-separated list such as q_proj,v_proj."""


@dataclass
class TinyConfig:
    """Shape of the small Llama that is trained from scratch (`training/tiny.py`)."""

    hidden_size: int = 256
    """Width of the model. 64 to 512 is usual."""
    layers: int = 4
    """Decoder layers."""
    heads: int = 8
    """Attention heads. hidden_size must be a multiple of twice this number."""
    vocabulary: int = 2048
    """Tokens of the byte-pair tokenizer, which is trained on the trajectories."""
    context: int = 4096
    """Longest sequence, in tokens."""


@dataclass
class PolicyConfig:
    """The language model that is trained."""

    model: str = "smollm2"
    """`smollm2`, `nano` (a small Llama, pre-trained on the environments' texts), `tiny` (a small
    Llama from scratch), a directory, or a hub id."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """`bfloat16`: frozen weights are kept in it; where all weights are trained, forward and
    backward passes compute in it (autocast). `auto`: bfloat16 for frozen weights where the device
    is faster in it. Trained weights are always kept in float32. A GPU computes float32 products in
    TF32, unless this is `float32`."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, …"""
    max_new_tokens: int = 256
    """Longest reply, in tokens, in practice, in the agent's episodes and in evaluation."""
    template: dict[str, Any] = field(default_factory=dict)
    """Arguments of the model's chat template, such as `{enable_thinking: false}`; the same in
    training, practice and evaluation. Two are our own: `history_thoughts` (what becomes of the
    thoughts of earlier turns: `keep`, `drop`, or as the `template` decides) and `date` (what the
    template takes for today, YYYY-MM-DD)."""
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
    """A file of `stepagent collect`. Empty: the run collects the trajectories itself, into its
    directory."""
    limit: int = 0
    """At most this many; 0: all. A smaller number gives a part of what a larger one gives."""
    draw: Literal["fixed", "seed"] = "fixed"
    """Which ones `limit` takes. `fixed`: the first of a fixed shuffle of the tasks, the same for
    every seed, so that intervals over seeds say nothing about other trajectories. `seed`: each seed
    draws its own."""
    min_reward: float = 1.0
    """Trajectories that scored less are left out, and counted. From this score on, an episode of
    the agent's own counts as a success."""
    workers: int = 8
    """Environments played at the same time while collecting."""
    wording: Literal["fixed", "varied"] = "fixed"
    """The expert's thoughts. `fixed`: as it says them. `varied`: each in words drawn by (seed,
    task, step) from several that say the same, so that they cannot be learned by heart."""


@dataclass
class EvaluationConfig:
    """Scoring of the policies on tasks that they were not trained on."""

    env: str = ""
    """Environment to score on. Empty: the one that is trained on."""
    env_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of that environment. Used only if `env` is given."""
    split: Literal["train", "dev", "test"] = "test"
    """Split to score on."""
    limit: int = 0
    """Number of tasks: the first of a fixed shuffle of the split, the same for every seed. 0: the
    entire split."""
    agents: list[str] = field(default_factory=list)
    """Agents to score on the same tasks for comparison, such as random and expert."""
    agreement: int = 0
    """Number of the expert's trajectories of the dev split on which the policy's agreement with the
    expert is measured after each stage, and by which `sft.select: dev` chooses. It takes 100 or
    more to tell methods apart. 0: none (`sft.select: dev` then takes 200)."""
    matched_sft: bool = False
    """Also train and score the control `sft-matched`: SFT alone, on as many tokens as the entire
    run was trained on, in the folder of that name. Without it a gain may come from longer training
    alone. Without effect for `sft` itself."""
    every_iteration: bool = True
    """Score after SFT and after every iteration. Off: only at the end."""
    workers: int = 16
    """Episodes played at the same time."""
    temperature: float = 0.0
    """Sampling temperature. 0: greedy, as in the paper."""


@dataclass
class SamplerConfig:
    """Where the policy's replies are drawn: in practice, in its own episodes and in scoring."""

    urls: list[str] = field(default_factory=list)
    """Addresses of vLLM servers (engines) that draw the replies and share the load; the trainer
    says how to start them. Empty: the trainer draws them itself."""
    shared: str = ""
    """Folder in which each version of the policy is published; trainer and engines must see it
    under the same path. Empty: `published/` in the run's directory."""
    concurrency: int = 64
    """Requests in flight at once, per engine and per process of the run. 16 to 256 is usual."""
    timeout: float = 600.0
    """Seconds without an answer after which an engine counts as down."""
    patience: float = 600.0
    """Seconds to wait where no engine answers, before the run stops. The same command continues
    it."""


@dataclass
class Config:
    """Trains a policy: collects expert data, fine-tunes on them (SFT), applies one method, and
    scores each stage."""

    output: str
    """Directory of the run. Running the same configuration again resumes where it stopped."""
    method: str = "implicit"
    """`implicit` and `inverse` are StepAgent (eq. 6 and algorithm 1). `sft`, `ppo`, `dpo`, `rft`,
    `spin`, `nat` and `eto` are the paper's baselines; `dagger`, `grpo`, `gigpo` and `distill` go
    beyond the paper. Also the name of a variant, such as `sft-best` or `anchor-only`, or
    `module:NAME` for a custom `Method`."""
    env: str = "stepagent/ScienceWorld-v0"
    """Environment to learn; `module:Namespace/Name-v0` for a custom one."""
    env_args: dict[str, Any] = field(default_factory=dict)
    """Arguments of the environment, such as `tasks: find-plant,find-animal`."""
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
    """Seconds between checkpoints within a stage. A killed run loses at most this much work."""
    report_to: list[str] = field(default_factory=lambda: ["tensorboard"])
    """Trackers that get the metrics besides `metrics.jsonl`, by accelerate's names: `tensorboard`,
    `wandb`, `trackio`, `mlflow`, … Install them and log in as their own documentation says."""
    peak_tflops: float = 0.0
    """What a process's device can do, in TFLOP/s of dense bfloat16 products; `share_of_peak` is the
    share of it that updates reach. 0: by the GPU's name where that is known, else the share is left
    out."""
    push_to_hub: str = ""
    """Repository of the Hugging Face hub (owner/name) to which the final policy is pushed, with a
    model card made from the run. A new repository is private. Empty: none."""
    keep_policies: bool = True
    """Keep the policy of every stage. Off: only the last one (`final/`)."""
