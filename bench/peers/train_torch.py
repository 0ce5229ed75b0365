"""Training peer: the distillation step of Stillhouse as PyTorch and transformers users write it.

Loss of a step, over all B * (L - 1) positions that have a next token:
    alpha * T^2 * KL(p || q) + (1 - alpha) * CE, p and q at temperature T over the whole vocabulary.
Data and teacher are random but seeded: only the work is real. Prints one JSON object.
"""
import argparse
import json
import resource
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="config.json of a Qwen2 or Llama model, or its folder")
    parser.add_argument("--mode", choices=["fp32", "compile", "bf16", "bf16-compile"], default="fp32",
                        help="float32 eager, float32 with torch.compile, bfloat16 autocast, and that with torch.compile")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--tf32", action="store_true", help="float32 products round their operands to tf32")
    parser.add_argument("--labels", choices=["full", "topk", "none"], default="full")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=2, help="steps that the median leaves out")
    parser.add_argument("--teacher-hidden", type=int, help="width of the teacher; the student's if not given")
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--alpha", type=float, default=0.7)
    parser.add_argument("--optimizer", choices=["fused", "default"], default="fused", help="how torch runs AdamW")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def build_optimizer(model, implementation):
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), eps=1e-8,
                             fused=True if implementation == "fused" else None)


def draw_batches(arguments, vocabulary, teacher_width):
    """One batch a step. Teacher: final hidden states, or top-k log-probabilities and the tail's at temperature T."""
    generator = torch.Generator().manual_seed(arguments.seed)
    positions = arguments.batch * (arguments.length - 1)
    while True:
        batch = {"ids": torch.randint(vocabulary, (arguments.batch, arguments.length), generator=generator)}
        if arguments.labels == "full":
            batch["teacher_hidden"] = torch.randn(positions, teacher_width, generator=generator)
        elif arguments.labels == "topk":
            # Distinct ids: a random start and a stride that is odd and below V / k.
            start = torch.randint(vocabulary, (positions, 1), generator=generator)
            stride = 2 * torch.randint(max(1, vocabulary // arguments.top_k // 2), (positions, 1), generator=generator) + 1
            batch["topk_ids"] = (start + stride * torch.arange(arguments.top_k)) % vocabulary
            entries = torch.randn(positions, arguments.top_k + 1, generator=generator) * 2
            batch["topk_logprobs"] = F.log_softmax(entries, dim=-1)
        yield batch


def distillation_loss(logits, batch, teacher_matrix, arguments):
    """`logits` [B, L, V]; the last position predicts nothing."""
    targets = batch["ids"][:, 1:].flatten()
    student = logits[:, :-1].flatten(0, 1).float()
    ce = F.cross_entropy(student, targets)
    if arguments.labels == "none":
        return ce
    temperature = arguments.temperature
    student_logprobs = F.log_softmax(student / temperature, dim=-1)
    if arguments.labels == "full":
        with torch.no_grad():
            teacher = (batch["teacher_hidden"] @ teacher_matrix.T).float()
            teacher_logprobs = F.log_softmax(teacher / temperature, dim=-1)
    else:
        teacher_logprobs = batch["topk_logprobs"]
        inside = student_logprobs.gather(-1, batch["topk_ids"])
        tail = torch.log(-torch.expm1(torch.logsumexp(inside, dim=-1, keepdim=True)))
        student_logprobs = torch.cat([inside, tail], dim=-1)
    kl = F.kl_div(student_logprobs, teacher_logprobs, log_target=True, reduction="sum") / targets.numel()
    return arguments.alpha * temperature**2 * kl + (1 - arguments.alpha) * ce


def main():
    arguments = parse_arguments()
    if arguments.steps <= arguments.warm_up:
        sys.exit(f"--steps {arguments.steps}: must be more than --warm-up {arguments.warm_up}")
    torch.set_num_threads(arguments.threads)
    if arguments.tf32:
        torch.set_float32_matmul_precision("high")
    device = torch.device(arguments.device)
    torch.manual_seed(arguments.seed)

    config = AutoConfig.from_pretrained(arguments.config)
    config.use_cache = False
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa").train().to(device)
    optimizer = build_optimizer(model, arguments.optimizer)
    teacher_width = arguments.teacher_hidden or config.hidden_size
    teacher_matrix = None
    if arguments.labels == "full":
        teacher_matrix = (torch.randn(config.vocab_size, teacher_width) * (2 / teacher_width**0.5)).to(device)

    loss_of = distillation_loss
    if arguments.mode == "bf16-compile":
        # Layer by layer, as PyTorch's "regional compilation" recipe has it: compiled once, whatever the depth.
        for layer in model.model.layers:
            layer.compile()
        loss_of = torch.compile(distillation_loss)

    def compute_loss(batch):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=arguments.mode.startswith("bf16")):
            logits = model(input_ids=batch["ids"]).logits
            return loss_of(logits, batch, teacher_matrix, arguments)

    if arguments.mode == "compile":
        compute_loss = torch.compile(compute_loss)

    losses, seconds, cpu_seconds = [], [], []
    batches = draw_batches(arguments, config.vocab_size, teacher_width)
    for step in range(arguments.steps):
        batch = {name: tensor.to(device) for name, tensor in next(batches).items()}
        start, cpu_start = time.perf_counter(), time.process_time()
        loss = compute_loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
        print(f"step {step + 1}/{arguments.steps}: loss {losses[-1]:.4f}, {seconds[-1]:.2f} s", file=sys.stderr)

    device_bytes = {}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        device_bytes = {"deviceBytes": total - free, "maxAllocatedBytes": torch.cuda.max_memory_allocated()}
    step_seconds = statistics.median(seconds[arguments.warm_up:])
    print(json.dumps({
        "peer": "torch",
        "versions": {"torch": torch.__version__, "transformers": __import__("transformers").__version__},
        "mode": arguments.mode,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        **device_bytes,
        "labels": arguments.labels,
        "optimizer": arguments.optimizer,
        "threads": arguments.threads,
        "parameters": sum(p.numel() for p in model.parameters()),
        "batch": arguments.batch,
        "length": arguments.length,
        "steps": arguments.steps,
        "warmUp": arguments.warm_up,
        "stepMs": step_seconds * 1000,
        "cpuMs": min(cpu_seconds[arguments.warm_up:]) * 1000,
        "tokensPerSecond": arguments.batch * arguments.length / step_seconds,
        "peakRssBytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "losses": losses,
    }))


if __name__ == "__main__":
    main()
