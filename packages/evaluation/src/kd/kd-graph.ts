import {
  emitCrossEntropy,
  emitDivergence,
  emitFullDistributions,
  emitRefinedTeacher,
  emitTopKDistributions,
  type LogDistributions,
} from '@stillhouse/objectives';
import { type FloatDtype, GraphBuilder, type Value } from '@stillhouse/onnx-graph';
import type { KdLabels } from './kd-labels.ts';

export interface ModelReadout {
  readonly hiddenSize: number;
  readonly rmsNormEpsilon: number;
}

/** Names of the inputs and outputs that exist once for each temperature. */
export const perTemperature = {
  logprobs: (index: number) => `teacher.topk_logprobs.${index}`,
  tail: (index: number) => `teacher.tail_logprob.${index}`,
  kl: (index: number) => `kl.${index}`,
};

/**
 * Final norm, output matrix and every figure for a chunk of N label positions, so that logits [N, V] exist for one
 * chunk at a time and never leave the graph; they are computed once for all temperatures.
 *
 * Inputs: x [N, H] the residual stream after the last layer; norm [H]; head [V, H]; labels int64 [N, 1]; for full
 * labels teacher.hidden [N, D] and teacher.head [V, D]; for top-k and refined labels teacher.topk_ids int64 [N, K] and,
 * for each temperature i, teacher.topk_logprobs.i [N, K] and teacher.tail_logprob.i [N]. Outputs, in nats: nll [N];
 * kl.i [N], KL(teacher‖model) at temperature i without the factor T²; model_top int64 [N], the model's best id;
 * teacher_top int64 [N] where the labels are full and the cache has no top-k.
 */
export function kdGraph(
  labels: KdLabels,
  readout: ModelReadout,
  temperatures: readonly number[],
  float: FloatDtype,
): GraphBuilder {
  const g = new GraphBuilder('kd_evaluation', float);
  const { soft, vocabSize } = labels;
  const x = g.floatInput('x', ['N', readout.hiddenSize]);
  const norm = g.floatInput('norm', [readout.hiddenSize]);
  const head = g.floatInput('head', [vocabSize, readout.hiddenSize]);
  const targets = g.input('labels', 'int64', ['N', 1]);
  const hidden = g.scope('final_norm', () => g.rmsNormalization(x, norm, readout.rmsNormEpsilon));
  const logits = g.scope('lm_head', () => g.gemm(hidden, head, { transB: true }));
  g.output(
    'nll',
    g.scope('ce', () => emitCrossEntropy(g, logits, targets)),
  );
  g.output('model_top', g.argMax(logits, 1));

  let distributions: (temperature: Value, index: number) => LogDistributions;
  if (soft.kind === 'full') {
    const teacherHidden = g.floatInput('teacher.hidden', ['N', soft.teacherHidden]);
    const teacherHead = g.floatInput('teacher.head', [vocabSize, soft.teacherHidden]);
    const teacherLogits = g.scope('teacher_head', () => g.gemm(teacherHidden, teacherHead, { transB: true }));
    if (!labels.hasTopK) g.output('teacher_top', g.argMax(teacherLogits, 1));
    const [refinement] = labels.refinements ?? [];
    if (refinement === undefined) {
      distributions = (temperature) => emitFullDistributions(g, logits, teacherLogits, temperature);
    } else {
      const { k } = refinement;
      const ids = g.input('teacher.topk_ids', 'int64', ['N', k]);
      distributions = (temperature, index) => {
        const logprobs = g.floatInput(perTemperature.logprobs(index), ['N', k]);
        const topk = { ids, logprobs, tailLogprob: g.floatInput(perTemperature.tail(index), ['N']) };
        const { normaliser } = labels.refinements![index]!;
        return {
          teacher: emitRefinedTeacher(g, teacherLogits, topk, { normaliser, temperature }),
          student: g.logSoftmax(g.mul(logits, g.reciprocal(temperature)), 1),
        };
      };
    }
  } else {
    const { k, isWhole } = soft;
    const ids = g.input('teacher.topk_ids', 'int64', ['N', k]);
    distributions = (temperature, index) => {
      const logprobs = g.floatInput(perTemperature.logprobs(index), ['N', k]);
      const tailLogprob = isWhole ? undefined : g.floatInput(perTemperature.tail(index), ['N']);
      return emitTopKDistributions(g, logits, { ids, logprobs, tailLogprob }, { tail: 'tail', temperature });
    };
  }
  temperatures.forEach((temperature, index) => {
    const kl = g.scope(`kl_${index}`, () =>
      emitDivergence(g, { kind: 'forward-kl' }, distributions(g.scalar(temperature), index)),
    );
    g.output(perTemperature.kl(index), kl);
  });
  return g;
}
