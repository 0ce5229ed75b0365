import { stat } from 'node:fs/promises';
import { openCacheAt } from '@stillhouse/cache-remote';
import { type ModelConfig, openModelWeights, readModelConfig } from '@stillhouse/checkpoint';
import { writeFileAtomically } from '@stillhouse/durable-files';
import { StillhouseError } from '@stillhouse/errors';
import { createGenerator, type DecoderOnDevice, loadDecoder } from '@stillhouse/model-runner';
import { checkModelTokenizer, describeOpenLabels } from '@stillhouse/objectives';
import { readQuestions } from '@stillhouse/rows';
import { type Engine, openEngine } from '@stillhouse/runtime';
import { exactMatch, type TaskItem } from '@stillhouse/tasks';
import type { TeacherCache } from '@stillhouse/teacher-cache';
import { openTokenizer } from '@stillhouse/tokenizer';
import type { EvaluationSettings } from './evaluation-settings.ts';
import { type ExactMatchFigures, evaluateExactMatch } from './exact-match/exact-match.ts';
import { evaluateKd, type KdFigures } from './kd/kd-evaluation.ts';
import { resolveKdLabels } from './kd/kd-labels.ts';
import { selectKdRows } from './kd/kd-rows.ts';

/** What every result says of its run. */
export interface EvaluationRun {
  /** The model folder as given. */
  readonly model: string;
  /** Of the evaluation alone; loading the model is not in it. */
  readonly elapsedMs: number;
  /** kd: tokens of the rows; exact-match: new tokens. */
  readonly tokensPerSecond: number;
  readonly peakRssBytes: number;
  readonly device: string;
  /** The resolved settings. */
  readonly recipe: EvaluationSettings;
}

export type KdResult = { readonly task: 'kd' } & KdFigures &
  EvaluationRun & {
    readonly cache: string;
    readonly cacheDigest: string;
    /** The labels that the KL was taken from, and how exact they are. */
    readonly labels: 'full' | 'topk';
    readonly labelDetail: string;
  };

export type ExactMatchResult = { readonly task: 'exact-match' } & ExactMatchFigures &
  EvaluationRun & { readonly data: string };

export type EvaluationResult = KdResult | ExactMatchResult;

export interface EvaluationEvents {
  /** Told once before the model is loaded: how many rows or questions there are. */
  readonly onPlan?: (plan: { readonly task: EvaluationResult['task']; readonly total: number }) => void;
  /**
   * Told when the model is loaded, then as rows are done or tokens found; `correct` counts right answers of
   * exact-match.
   */
  readonly onProgress?: (done: {
    readonly done: number;
    readonly total: number;
    readonly tokens: number;
    readonly correct?: number;
  }) => void;
}

/** What many evaluations of one process need to open only once. */
export interface SharedCaches {
  /** Opens a cache by its folder or address; each evaluation closes what it is given. */
  readonly openCache?: (location: string) => Promise<TeacherCache>;
}

/**
 * Evaluates a model as the settings say and writes the result, with its recipe inside, to `out` in one step: a failure
 * leaves no file. Everything that could be wrong is checked before the model is loaded.
 * @throws StillhouseError of each part, and SETTING_MISSING, SETTING_NOT_FOR_TASK, OUT_IS_FOLDER
 */
export async function evaluateModel(
  settings: EvaluationSettings,
  events: EvaluationEvents = {},
  shared: SharedCaches = {},
): Promise<EvaluationResult> {
  const out = requireSetting(settings, 'out');
  const prepared = await prepare(settings, shared);
  try {
    const { task, total } = prepared;
    events.onPlan?.({ task, total });
    const result = await prepared.run(events);
    await writeFileAtomically(out, `${JSON.stringify(result, null, 2)}\n`);
    return result;
  } finally {
    await prepared.close();
  }
}

/**
 * Checks an evaluation as `evaluateModel` does before it loads the model, and does nothing.
 * @returns how many rows or questions there are
 * @throws StillhouseError as {@link evaluateModel}
 */
export async function checkEvaluation(settings: EvaluationSettings, shared: SharedCaches = {}): Promise<number> {
  const { total, close } = await prepare(settings, shared);
  await close();
  return total;
}

/** An evaluation that nothing is known to be wrong with. */
interface Prepared {
  readonly task: EvaluationResult['task'];
  /** Rows or questions. */
  readonly total: number;
  run(events: EvaluationEvents): Promise<EvaluationResult>;
  close(): Promise<void>;
}

async function prepare(settings: EvaluationSettings, shared: SharedCaches): Promise<Prepared> {
  const task = requireSetting(settings, 'task');
  await refuseFolder(requireSetting(settings, 'out'));
  return task === 'kd' ? prepareKd(settings, shared) : prepareExactMatch(settings);
}

type Required = 'task' | 'model' | 'out' | 'cache' | 'data';

function requireSetting<Key extends Required>(
  settings: { readonly [key in Key]: EvaluationSettings[key] } & Pick<EvaluationSettings, 'task'>,
  key: Key,
): Exclude<EvaluationSettings[Key], undefined> {
  const value = settings[key] as Exclude<EvaluationSettings[Key], undefined> | undefined;
  if (value !== undefined) return value;
  const kinds = {
    task: 'kd or --task exact-match',
    model: 'DIR',
    out: 'FILE.json',
    cache: 'CACHE',
    data: 'FILE.jsonl',
  };
  throw new StillhouseError({
    code: 'SETTING_MISSING',
    where: `--${key}`,
    problem: key === 'cache' || key === 'data' ? `the task ${settings.task} needs it` : 'the setting is required',
    remedy: `Give --${key} ${kinds[key]}`,
  });
}

async function refuseFolder(out: string): Promise<void> {
  const isFolder = await stat(out).then(
    (found) => found.isDirectory(),
    () => false,
  );
  if (!isFolder) return;
  throw new StillhouseError({
    code: 'OUT_IS_FOLDER',
    where: `--out ${out}`,
    problem: 'the result is one file and this is a folder',
    remedy: 'Give a file name, such as result.json',
  });
}

/** Opens the engine and the model for as long as `body` runs, and takes its time. */
async function withModel<Figures>(
  settings: EvaluationSettings,
  { folder, config }: { readonly folder: string; readonly config: ModelConfig },
  body: (engine: Engine, model: DecoderOnDevice) => Promise<Figures>,
  countTokens: (figures: Figures) => number,
): Promise<Figures & EvaluationRun> {
  const weights = await openModelWeights(folder, config);
  try {
    const { device, threads } = settings;
    const engine = await openEngine({ device, ...(threads === undefined ? {} : { threads }) });
    try {
      const model = await loadDecoder(engine, weights);
      // The answer comes when the weights are there.
      await engine.memory();
      const startedAt = performance.now();
      const figures = await body(engine, model);
      const elapsedMs = performance.now() - startedAt;
      const { peakRssBytes } = await engine.memory();
      return {
        ...figures,
        model: folder,
        elapsedMs,
        tokensPerSecond: (countTokens(figures) / elapsedMs) * 1000,
        peakRssBytes,
        device: engine.deviceReason,
        recipe: settings,
      };
    } finally {
      await engine.close();
    }
  } finally {
    await weights.close();
  }
}

async function prepareKd(settings: EvaluationSettings, { openCache = openCacheAt }: SharedCaches): Promise<Prepared> {
  const { temperatures, batchSize, chunkPositions, refine } = settings;
  const folder = requireSetting(settings, 'model');
  const cache = await openCache(requireSetting(settings, 'cache'));
  try {
    const config = await readModelConfig(folder);
    const labels = resolveKdLabels(describeOpenLabels(cache), config, { temperatures, where: cache.folder, refine });
    await checkModelTokenizer(cache, folder);
    const rows = await selectKdRows(cache, config, labels.vocabSize, settings);
    return {
      task: 'kd',
      total: rows.length,
      close: () => cache.close(),
      run: async ({ onProgress }) => {
        const tell = (done: { readonly rows: number; readonly tokens: number }) =>
          onProgress?.({ done: done.rows, total: rows.length, tokens: done.tokens });
        const { records, ...figures } = await withModel(
          settings,
          { folder, config },
          (engine, model) => {
            tell({ rows: 0, tokens: 0 });
            return evaluateKd(engine, model, cache, {
              ...{ labels, temperatures, rows, batchSize, chunkPositions },
              onProgress: tell,
            });
          },
          ({ tokens }) => tokens,
        );
        const { kind } = labels.soft;
        const place = { cache: cache.folder, cacheDigest: cache.digest, labels: kind, labelDetail: labels.detail };
        // The records last: the figures should be seen first in the file.
        return { task: 'kd', ...place, ...figures, records };
      },
    };
  } catch (error) {
    await cache.close();
    throw error;
  }
}

async function prepareExactMatch(settings: EvaluationSettings): Promise<Prepared> {
  const { split, limit, maxNewTokens, batchSize } = settings;
  const folder = requireSetting(settings, 'model');
  const data = requireSetting(settings, 'data');
  if (split !== undefined) {
    throw new StillhouseError({
      code: 'SETTING_NOT_FOR_TASK',
      where: `--split ${split}`,
      problem: 'a split is of a cache, and exact-match reads a question file',
      remedy: 'Leave --split out and give a file with just the questions to ask',
    });
  }
  const items: TaskItem[] = [];
  for await (const question of readQuestions(data, limit === undefined ? {} : { limit })) {
    items.push(exactMatch.readItem(question));
  }
  const config = await readModelConfig(folder);
  const tokenizer = await openTokenizer(folder);
  const asked = items.map((item) => ({ item, ids: exactMatch.encodePrompt(item, tokenizer, config) }));
  const stopIds = exactMatch.findStopIds(config, tokenizer);
  return {
    task: 'exact-match',
    total: asked.length,
    close: async () => {},
    run: async ({ onProgress }) => {
      const { records, ...figures } = await withModel(
        settings,
        { folder, config },
        async (engine, model) => {
          const generator = await createGenerator(engine, model, { maxSequences: batchSize });
          onProgress?.({ done: 0, total: asked.length, tokens: 0, correct: 0 });
          return evaluateExactMatch(generator, tokenizer, asked, {
            ...{ task: exactMatch, maxNewTokens, stopIds },
            onProgress: ({ questions: done, correct, tokens }) =>
              onProgress?.({ done, total: asked.length, tokens, correct }),
          });
        },
        ({ newTokens }) => newTokens,
      );
      return { task: 'exact-match', data, ...figures, records };
    },
  };
}
