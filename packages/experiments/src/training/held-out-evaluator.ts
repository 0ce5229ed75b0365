import { openHeldOut, type SharedCaches } from '@stillhouse/evaluation';
import { type HeldOutEvaluator, resolveHeldOut, type StagedSettings } from '@stillhouse/student-trainer';

/** Rows of a batch of the evaluation while training; it has no flag of its own, as it changes no figure. */
const EVALUATION_BATCH_SIZE = 8;

/**
 * Opens the rows that a run is evaluated on while it trains, the same in all its stages; undefined where its settings
 * ask for none.
 * @throws StillhouseError those of `openHeldOut` and `resolveHeldOut`
 */
export async function openEvaluator(
  run: StagedSettings,
  shared: SharedCaches = {},
): Promise<{ readonly evaluate: HeldOutEvaluator; close(): Promise<void> } | undefined> {
  const settings = run.stages?.[0]?.settings ?? run;
  const { student, chunkPositions } = settings;
  const plan = resolveHeldOut(settings);
  // The trainer says that a student is missing.
  if (plan === undefined || student === undefined) return undefined;
  const rows = await openHeldOut(
    { ...plan, model: student, temperatures: [1], batchSize: EVALUATION_BATCH_SIZE, chunkPositions },
    shared,
  );
  return {
    evaluate: async (engine, model) => {
      const { rows: count, targetTokens, kl, ce, top1Agreement } = await rows.evaluate(engine, model);
      return { rows: count, targetTokens, kl: kl['1']!, ce, top1Agreement };
    },
    close: rows.close,
  };
}
