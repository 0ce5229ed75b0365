# Made with Python 3.11, torch 2.15.0, transformers 5.23.0, safetensors 0.8.0, numpy 2.4.6, one thread.
"""Distances of states, and the gradients of a student whose layers and attention outputs are held to a teacher's.
Formulas: README.md. Run: python make_features.py"""
import contextlib
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.models.qwen2 import modeling_qwen2

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
HERE = os.path.dirname(os.path.abspath(__file__))
EPSILON = 1e-6
TEACHER_WIDTH = 24
# student layer, teacher layer; the weight of a term is shared by its pairs
HIDDEN, HIDDEN_WEIGHT = [("0", "3"), ("1", "5"), ("2", "5"), ("final", "final")], 0.5
ATTENTION, ATTENTION_WEIGHT = [("attention.1", "attention.2"), ("attention.2", "attention.4")], 0.25


@contextlib.contextmanager
def true_float64():
    """transformers computes norms, softmax and rotary angles in float32 whatever the model's dtype.
    Inside this block it does not."""
    kept = []

    def swap(owner, name, value):
        kept.append((owner, name, getattr(owner, name)))
        setattr(owner, name, value)

    def norm(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    def rotary(self, x, position_ids):
        c = self.config
        dim = c.hidden_size // c.num_attention_heads
        freq = [c.rope_parameters["rope_theta"] ** (-i / dim) for i in range(0, dim, 2)]
        angle = position_ids[..., None].double() * torch.tensor(freq, dtype=torch.float64)
        angle = torch.cat((angle, angle), dim=-1)
        return angle.cos(), angle.sin()

    def attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
        key = modeling_qwen2.repeat_kv(key, module.num_key_value_groups)
        value = modeling_qwen2.repeat_kv(value, module.num_key_value_groups)
        weights = torch.matmul(query, key.transpose(2, 3)) * scaling
        if attention_mask is not None:
            weights = weights + attention_mask
        weights = torch.softmax(weights, dim=-1)
        return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights

    swap(modeling_qwen2.Qwen2RMSNorm, "forward", norm)
    swap(modeling_qwen2.Qwen2RotaryEmbedding, "forward", rotary)
    swap(modeling_qwen2, "eager_attention_forward", attention)
    try:
        yield
    finally:
        for owner, name, value in reversed(kept):
            setattr(owner, name, value)


def save(name, tensors):
    save_file({k: v.detach().contiguous().clone() for k, v in tensors.items()}, os.path.join(HERE, name))


def normalise(kind, x):
    if kind == "none":
        return x
    if kind == "layer":
        x = x - x.mean(-1, keepdim=True)
    return x / (x.pow(2).mean(-1, keepdim=True) + EPSILON).sqrt()


def distance(loss, kind, h, t):
    h, t = normalise(kind, h), normalise(kind, t)
    if loss == "mse":
        return (h - t).pow(2).mean(-1)
    return 1 - (h * t).sum(-1) / (h.norm(dim=-1) * t.norm(dim=-1))


def watch(model):
    """states of every layer, by the names of a cache, as a forward pass makes them"""
    seen = {}
    base = model.model
    base.embed_tokens.register_forward_hook(lambda m, i, o: seen.__setitem__("0", o))
    base.norm.register_forward_hook(lambda m, i, o: seen.__setitem__("final", o))
    first = lambda o: o[0] if isinstance(o, tuple) else o
    for n, layer in enumerate(base.layers, 1):
        layer.register_forward_hook(lambda m, i, o, n=n: seen.__setitem__(str(n), first(o)))
        layer.self_attn.register_forward_hook(lambda m, i, o, n=n: seen.__setitem__("attention.%d" % n, first(o)))
    return seen


def load(name, dtype):
    folder = os.path.join(HERE, "..", name)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return model, load_file(os.path.join(folder, "inputs.safetensors"))


def losses(g):
    randn = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    student, teacher, projection = randn(7, 12), 1.5 * randn(7, 20) + 0.5, randn(20, 12) / 12 ** 0.5
    weights = torch.rand(7, generator=g, dtype=torch.float64)
    out = {"student": student, "teacher": teacher, "projection": projection, "weights": weights}
    for loss in ("mse", "cosine"):
        for kind in ("none", "rms", "layer"):
            x, p = student.clone().requires_grad_(True), projection.clone().requires_grad_(True)
            values = distance(loss, kind, x @ p.T, teacher)
            (values * weights).sum().backward()
            key = "%s.%s" % (loss, kind)
            out.update({"per_token." + key: values, "d_student." + key: x.grad, "d_projection." + key: p.grad})
    save("losses.safetensors", out)


def matching(g):
    with true_float64():
        model, inputs = load("qwen2-tiny", torch.float64)
        seen = watch(model)
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False).logits
        mask = inputs["loss_mask"].double()
        targets = {t: torch.randn(*mask.shape, TEACHER_WIDTH, generator=g) for t in dict(HIDDEN + ATTENTION).values()}
        width = model.config.hidden_size
        pairs = {}
        projections = {}
        for student, teacher in HIDDEN + ATTENTION:
            name = "%s:%s" % (student, teacher)
            p = torch.randn(TEACHER_WIDTH, width, generator=g) / width ** 0.5
            projections[name] = p.double().requires_grad_(True)
            values = distance("mse", "none", seen[student] @ projections[name].T, targets[teacher].double())
            pairs[name] = (values * mask).sum() / mask.sum()
        named = lambda of: sum(pairs["%s:%s" % one] for one in of) / len(of)
        labels = inputs["labels"].clamp(min=0)
        nll = -torch.log_softmax(logits, -1).gather(-1, labels[..., None])[..., 0]
        ce = (nll * mask).sum() / mask.sum()
        total = ce + HIDDEN_WEIGHT * named(HIDDEN) + ATTENTION_WEIGHT * named(ATTENTION)
        total.backward()
    projection_name = lambda name: "projection.weight" if name == "final:final" else "projection.%s.weight" % name
    save("targets.safetensors", {**{"teacher." + k: v for k, v in targets.items()},
                                 **{projection_name(k): v.float() for k, v in projections.items()}})
    out = {"ce": ce.reshape(1), "total": total.reshape(1), **{"pair." + k: v.reshape(1) for k, v in pairs.items()}}
    save("matching.safetensors", out)
    gradients = {k: v.grad for k, v in model.named_parameters()}
    gradients.update({projection_name(k): v.grad for k, v in projections.items()})
    save("gradients.safetensors", {k: v.float() for k, v in gradients.items()})
    print({k: v.item() for k, v in out.items()})


def attention_outputs():
    out = {}
    for name in ("qwen2-tiny", "llama-tiny"):
        model, inputs = load(name, torch.float32)
        seen = watch(model)
        with torch.no_grad():
            model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        out.update({"%s.%s" % (name, k): v for k, v in seen.items() if k.startswith("attention.")})
    save("attention.safetensors", out)


if __name__ == "__main__":
    generator = torch.Generator().manual_seed(20261124)
    losses(generator)
    matching(generator)
    attention_outputs()
