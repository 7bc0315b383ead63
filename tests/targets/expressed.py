"""What each target expresses of the changes (`changes.py`) to the first of its models (`forms.py`); it refuses the others.

A line more or less is a change of what can be converted. That the file of a model that is expressed computes the same is tested
for each line.
"""

from __future__ import annotations

_EXPRESSED = {
    "apertus": """
        norm offset; rope on the whole; linear scaling; YaRN; YaRN with a factor; llama3 scaling; frequency
        factors; no bias on q; no bias on k; no bias on v; no bias on o; a window as long as the context; more
        heads; heads as wide as the model
    """,
    "bloom": """
        untied; norm offset; norms without weights; norms without biases; no bias on q; no bias on k; no bias on
        v; no bias on o; a window as long as the context; heads as wide as the model; gelu without a gate;
        gelu_tanh without a gate; bias on ffn.up; bias on ffn.down; no bias in the feed-forward
    """,
    "cohere2": """
        norm offset; norms without weights; rope on a part; linear scaling; YaRN; YaRN with a factor; no bias on
        q; no bias on k; no bias on v; no window; heads as wide as the model
    """,
    "command-r": """
        norm offset; norms without weights; rope on a part; linear scaling; YaRN; YaRN with a factor; bias on q;
        bias on k; bias on v; a window as long as the context; heads as wide as the model
    """,
    "ernie4_5-moe": """
        tied; norm offset; linear scaling; YaRN; YaRN with a factor; bias on q; bias on k; bias on v; a window
        as long as the context; more heads; heads as wide as the model; experts; experts last; one expert; all
        experts; all experts, not renormalised; all experts, renormalised; no
        router bias; another router; another number of experts; experts of another width; plain shared expert;
        wide shared expert; odd shared expert; no shared expert; no shared expert in one layer; plain shared
        expert of another width
    """,
    "falcon-h1": """
        untied; norm offset; attention alone; rope on a part; linear scaling; YaRN; YaRN with a factor; no bias
        on q; no bias on k; no bias on v; a window as long as the context; more heads; heads as wide as the
        model; gate of silu; bias on ffn.gate; bias on ffn.up; bias on ffn.down; no bias in the feed-forward; a
        dense layer last; dense; state space without a norm; state space with decays as logs; state space
        without a bias of its convolution; state space of another width
    """,
    "gemma": """
        norm offset; attention alone; linear scaling; YaRN; YaRN with a factor; no bias on q; no bias on k; no
        bias on v; a window as long as the context; more heads; heads as wide as the model; gate of gelu
    """,
    "gemma2": """
        norm offset; bias on q; bias on k; bias on v; window; window in one layer; no window; a window as long
        as the context; a window that is almost as long; attention scale; another attention scale; cap on
        scores; more heads; heads as wide as the model; gate of gelu
    """,
    "gemma3": """
        untied; cap on logits; norm offset; rope on the whole; another base; bias on q; bias on k; bias on v;
        attention scale; another attention scale; more heads; heads as wide as the model; gate of gelu
    """,
    "glm4": """
        untied; norm offset; rope on the whole; linear scaling; YaRN; YaRN with a factor; no bias on q; no bias
        on k; no bias on v; a window as long as the context; more heads; heads as wide as the model
    """,
    "glm4moe": """
        tied; norm offset; attention alone; rope on the whole; linear scaling; YaRN; YaRN with a factor; bias on
        q; bias on k; bias on v; no q/k norm; no q/k norm in one layer; a window as long as the context; more
        heads; heads as wide as the model; one expert; all experts; not renormalised; all experts, not
        renormalised; all experts, renormalised; softmax; router scale; no router scale; no router bias; plain
        shared expert; wide shared expert
    """,
    "gpt2": """
        untied; more positions; norm offset; norms without weights; norms without biases; no bias on q; no bias
        on k; no bias on v; no bias on o; a window as long as the context; heads as wide as the model; gelu
        without a gate; gelu_tanh without a gate; bias on ffn.up; bias on ffn.down; no bias in the feed-forward
    """,
    "gpt-oss": """
        norm offset; linear scaling; YaRN; YaRN with a factor; no bias on q; no bias on k; no bias on v; no bias
        on o; window; window in one layer; no window; a window as long as the context; a window that is almost
        as long; more heads; heads as wide as the model; one expert; all experts; all experts, not renormalised;
        all experts, renormalised; no router bias; bias on moe.gate; bias on moe.up; bias on
        moe.down
    """,
    "gptneox": """
        norm offset; norms without weights; norms without biases; in turn; rope on the whole; linear scaling;
        YaRN; YaRN with a factor; no bias on q; no bias on k; no bias on v; no bias on o; a window as long as
        the context; heads as wide as the model; gelu without a gate; gelu_tanh without a gate; bias on ffn.up;
        bias on ffn.down; no bias in the feed-forward
    """,
    "granite": """
        untied; embedding scale; logit scale; norm offset; residual scale; no rope; linear scaling; YaRN; YaRN
        with a factor; llama3 scaling; frequency factors; no bias on q; no bias on k; no bias on v; no bias on
        o; a window as long as the context; attention scale; more heads; heads as wide as the model; gate of
        silu; bias on ffn.gate; bias on ffn.up; bias on ffn.down; no bias in the feed-forward; experts; a dense
        layer last; dense
    """,
    "granitehybrid": """
        tied; embedding scale; logit scale; norm offset; residual scale; no rope; linear scaling; YaRN; YaRN
        with a factor; llama3 scaling; frequency factors; bias on q; bias on k; bias on v; bias on o; a window
        as long as the context; attention scale; more heads; heads as wide as the model; gate of silu; experts;
        dense; one expert; all experts; all experts, not renormalised; all experts, renormalised; plain shared
        expert; wide shared expert; odd shared expert; no shared expert; state space with decays as logs; state
        space without a bias of its convolution
    """,
    "granite_swa": """
        tied; norm offset; linear scaling; YaRN; YaRN with a factor; llama3 scaling; frequency factors; no bias
        on q; no bias on k; no bias on v; no bias on o; window; window in one layer; a window that is almost as
        long; no sinks; more heads; heads as wide as the model; gate of silu; bias on ffn.gate; bias on ffn.up;
        bias on ffn.down; no bias in the feed-forward; experts; a dense layer last; dense
    """,
    "granitemoe": """
        tied; embedding scale; logit scale; norm offset; residual scale; linear scaling; YaRN; YaRN with a
        factor; llama3 scaling; frequency factors; bias on q; bias on k; bias on v; bias on o; a window as long
        as the context; attention scale; more heads; heads as wide as the model; experts; one expert; all
        experts; all experts, not renormalised; all experts, renormalised; plain shared expert; wide shared
        expert; odd shared expert; no shared expert
    """,
    "hunyuan-dense": """
        untied; norm offset; linear scaling; YaRN; YaRN with a factor; no bias on q; no bias on k; no bias on v;
        a window as long as the context; more heads; heads as wide as the model
    """,
    "lfm2": """
        untied; norm offset; linear scaling; YaRN; YaRN with a factor; bias on q; bias on k; bias on v; a window
        as long as the context; heads as wide as the model
    """,
    "lfm2moe": """
        tied; norm offset; linear scaling; YaRN; YaRN with a factor; bias on q; bias on k; bias on v; a window
        as long as the context; heads as wide as the model; experts; one expert; all experts; all experts,
        renormalised; softmax; no router bias; a little added to the sum
    """,
    "llama": """
        untied; norm offset; linear scaling; YaRN; YaRN with a factor; llama3 scaling; frequency factors; no
        bias on q; no bias on k; no bias on v; no bias on o; a window as long as the context; more heads; heads
        as wide as the model; gate of silu; bias on ffn.gate; bias on ffn.up; bias on ffn.down; no bias in the
        feed-forward; experts; a dense layer last; dense
    """,
    "mamba2": """
        untied; norm offset; state space with decays as logs; state space without a bias of its convolution;
        state space of another width
    """,
    "nemotron": """
        norm offset; norms without weights; norms without biases; rope on the whole; linear scaling; YaRN; YaRN
        with a factor; no bias on q; no bias on k; no bias on v; no bias on o; a window as long as the context;
        heads as wide as the model; relu2 without a gate; bias on ffn.up; bias on ffn.down; no bias in the
        feed-forward
    """,
    "olmo": """
        untied; linear scaling; YaRN; YaRN with a factor; no bias on q; no bias on k; no bias on v; a window as
        long as the context; clip; heads as wide as the model
    """,
    "olmo2": """
        norm offset; rope on the whole; bias on q; bias on k; bias on v; heads as wide as the model
    """,
    "olmoe": """
        norm offset; linear scaling; YaRN; YaRN with a factor; no bias on q; no bias on k; no bias on v; a
        window as long as the context; one expert; all experts; all experts, not renormalised; all experts,
        renormalised
    """,
    "phi2": """
        norm offset; norms without weights; norms without biases; rope on the whole; linear scaling; YaRN; YaRN
        with a factor; no bias on q; no bias on k; no bias on v; no bias on o; a window as long as the context;
        heads as wide as the model; gelu without a gate; gelu_tanh without a gate; bias on ffn.up; bias on
        ffn.down; no bias in the feed-forward
    """,
    "phi3": """
        tied; norm offset; rope on the whole; linear scaling; YaRN; YaRN with a factor; LongRoPE; no bias on q;
        no bias on k; no bias on v; a window as long as the context; heads as wide as the model
    """,
    "qwen2": """
        tied; norm offset; linear scaling; YaRN; YaRN with a factor; no bias on q; no bias on k; no bias on v; a
        window as long as the context; heads as wide as the model
    """,
    "qwen2moe": """
        norm offset; linear scaling; YaRN; YaRN with a factor; no bias on q; no bias on k; no bias on v; a
        window as long as the context; heads as wide as the model; one expert; all experts; all experts, not
        renormalised; all experts, renormalised; gated shared expert
    """,
    "qwen3": """
        tied; norm offset; linear scaling; YaRN; YaRN with a factor; no bias on q; no bias on k; no bias on v; a
        window as long as the context; more heads; heads as wide as the model
    """,
    "qwen3moe": """
        tied; norm offset; linear scaling; YaRN; YaRN with a factor; no bias on q; no bias on k; no bias on v; a
        window as long as the context; more heads; heads as wide as the model; one expert; all experts; all
        experts, not renormalised; all experts, renormalised
    """,
    "qwen35": """
        untied; norm offset; rope on the whole; linear scaling; YaRN; YaRN with a factor; bias on q; bias on k;
        bias on v; a window as long as the context; more heads; heads as wide as the model; more value heads;
        decays as logs
    """,
    "qwen35moe": """
        tied; norm offset; rope on the whole; linear scaling; YaRN; YaRN with a factor; no bias on q; no bias on
        k; no bias on v; a window as long as the context; more heads; heads as wide as the model; one expert;
        all experts; all experts, not renormalised; all experts, renormalised; gated shared expert; more value
        heads; decays as logs
    """,
    "qwen3next": """
        tied; norm offset; rope on the whole; linear scaling; YaRN; YaRN with a factor; no bias on q; no bias on
        k; no bias on v; a window as long as the context; more heads; heads as wide as the model; one expert;
        all experts; all experts, not renormalised; all experts, renormalised; gated shared expert; gated shared
        expert of another width; more value heads; decays as logs
    """,
    "smollm3": """
        tied; norm offset; linear scaling; YaRN; YaRN with a factor; no bias on q; no bias on k; no bias on v; a
        window as long as the context; more heads; heads as wide as the model
    """,
    "stablelm": """
        norm offset; norms without weights; norms without biases; parallel, one norm; rope on the whole; linear
        scaling; YaRN; YaRN with a factor; no bias on q; no bias on k; no bias on v; a window as long as the
        context; heads as wide as the model
    """,
    "starcoder2": """
        untied; norm offset; norms without weights; norms without biases; linear scaling; YaRN; YaRN with a
        factor; no bias on q; no bias on k; no bias on v; no bias on o; a window as long as the context; heads
        as wide as the model; gelu without a gate; gelu_tanh without a gate; bias on ffn.up; bias on ffn.down;
        no bias in the feed-forward
    """,
    "step35": """
        tied; norm offset; attention alone; rope on the whole; no bias on q; no bias on k; no bias on v; no q/k
        norm; no q/k norm in one layer; window; window in one layer; no window; a window as long as the context;
        a window that is almost as long; narrow values; more heads; heads as wide as the model; gate of silu; a
        dense layer last; dense; one expert; all experts; not renormalised; all experts, not renormalised; all
        experts, renormalised; softmax; router scale; no router scale; no router bias; another router; another
        number of experts; experts of another width; wide shared expert; odd shared expert; plain shared expert
        of another width
    """,
}
EXPRESSED = {name: {" ".join(one.split()) for one in text.split(";")} for name, text in _EXPRESSED.items()}
