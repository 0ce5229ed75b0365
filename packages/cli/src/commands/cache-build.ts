import { QUALITY_SETTINGS } from '@stillhouse/evaluation';
import { printBytes, printCount, printSignificant } from '@stillhouse/report';
import { integer, resolveSettings, type SettingsOf, text } from '@stillhouse/settings';
import { type CacheSize, printPartition } from '@stillhouse/teacher-cache';
import {
  BUILD_SETTINGS,
  type BuildPlan,
  type BuildProgress,
  type BuildResult,
  type BuildSettings,
  type BuildStart,
  buildTeacherCache,
  findPartition,
  planBuild,
} from '@stillhouse/teacher-inference';
import { type CommandContext, defineCommand, type Outcome } from '../command-line/command.ts';
import { recipeBeside } from '../command-line/written-recipe.ts';
import type { Progress } from '../terminal/progress.ts';
import { printQuality, showQuality } from '../terminal/quality-display.ts';
import { printPairs } from '../terminal/text-table.ts';

/** Every setting of `stillhouse cache build`. */
const SETTINGS = {
  ...BUILD_SETTINGS,
  student: text('measure a sample of the finished cache for this student, as cache quality does', undefined),
  qualityPositions: integer('target positions of that sample', 500, { min: 1 }),
} as const;
type Settings = SettingsOf<typeof SETTINGS>;

export const cacheBuild = defineCommand({
  settings: SETTINGS,
  run: async (settings, context) => {
    if (settings.dryRun) return plan(settings);
    const built = await build(settings, context);
    return settings.student === undefined ? built : addQuality(built, settings, context);
  },
});

/** Measures what was built, unless other partitions are still at work. */
async function addQuality(built: Built, settings: Settings, context: CommandContext): Promise<Outcome> {
  const { teacher, student, qualityPositions, temperatures, device, threads } = settings;
  const { result, summary } = built;
  if (result.cacheDigest === null) {
    context.note('cache quality: the other parts are not finished, measure the merged cache');
    return built;
  }
  const quality = await showQuality(
    resolveSettings(QUALITY_SETTINGS, {
      cache: result.out,
      student,
      positionsLimit: qualityPositions,
      temperatures,
      device,
      ...(teacher === undefined ? {} : { teacher }),
      ...(threads === undefined ? {} : { threads }),
    }),
    context,
  );
  return { ...built, result: { ...result, quality }, summary: `${summary}\n\n${printQuality(quality)}` };
}

interface Built extends Outcome {
  readonly result: BuildResult;
}

async function plan(settings: BuildSettings): Promise<Outcome> {
  const result = await planBuild(settings);
  return { result, summary: printPlan(result) };
}

async function build(settings: BuildSettings, context: CommandContext): Promise<Built> {
  let progress: Progress | undefined;
  const found = settings.partition === undefined ? findPartition(process.env) : undefined;
  if (found !== undefined) context.note(`cache build: partition ${found.setting}, by ${found.source}`);
  const partition = settings.partition ?? found?.setting;
  const result = await buildTeacherCache(
    { ...settings, partition },
    {
      onPlan: (start) => context.note(printStart(start)),
      onProgress: (now) => {
        progress ??= context.openProgress({ label: 'cache build', unit: 'tokens', total: now.tokens });
        progress.update({
          done: Math.round(now.tokensDone),
          pace: {
            tokensPerSecond: now.tokensPerSecond,
            leftMs: now.etaSeconds === null ? null : now.etaSeconds * 1000,
          },
          note: printStage(now),
        });
      },
    },
  );
  progress?.stop();
  // Parts that run at the same time would write the same file: the first does.
  const writesRecipe = result.partition === null || result.partition.index === 1;
  return {
    result,
    summary: printResult(result),
    ...(writesRecipe ? { recipeFile: recipeBeside(result.out) } : {}),
  };
}

function printStart(start: BuildStart): string {
  const { rows, tokens, shards, shardsDone, shardsOfPartition, device, weights, size, truncatedRows } = start;
  const parts = [
    `cache build: ${printCount(rows)} rows (${printCount(tokens)} tokens) in ${printCount(shards)} shards`,
    start.partition === null ? undefined : `${printCount(shardsOfPartition)} of them in this part`,
    shardsDone === 0 ? undefined : `${printCount(shardsDone)} of them done before`,
    truncatedRows === 0 ? undefined : `${printCount(truncatedRows)} rows cut`,
    `about ${printBytes(size.totalBytes)}`,
    device === null ? undefined : `on ${device}`,
    weights === 'streamed' ? 'weights read again for every shard' : undefined,
  ];
  return parts.filter((part) => part !== undefined).join(', ');
}

function printStage({ shard, shards, stage }: BuildProgress): string {
  const doing = stage === 'readout' ? ', reading labels' : stage === 'written' ? '' : `, layer ${stage}`;
  return `shard ${shard}/${shards}${doing}`;
}

const printGroups = ({ groups }: CacheSize): readonly (readonly [string, string])[] =>
  groups.map(({ group, sizeBytes, bytesPerPosition }) => [
    `  ${group}`,
    printBytes(sizeBytes) + (bytesPerPosition === null ? '' : ` (${printSignificant(bytesPerPosition)} bytes/token)`),
  ]);

function printPlan(plan: BuildPlan): string {
  const { longestRow, bytesPerPosition } = plan;
  return printPairs([
    ['rows', printCount(plan.rows)],
    ['tokens', printCount(plan.tokens)],
    ['target tokens', printCount(plan.targetTokens)],
    ['labels at', `${printCount(plan.labelPositions)} positions`],
    ['longest row', `${printCount(longestRow.length)} tokens (${longestRow.id}, line ${longestRow.line})`],
    ['rows cut', plan.truncatedRows === 0 ? undefined : printCount(plan.truncatedRows)],
    ['shards', printCount(plan.shards)],
    ['bytes/token', bytesPerPosition === null ? undefined : printSignificant(bytesPerPosition)],
    ['disk needed', `up to ${printBytes(plan.size.totalBytes)}`],
    ...printGroups(plan.size),
  ]);
}

function printParts({ partition, unfinishedParts }: BuildResult): string | undefined {
  if (partition === null) return undefined;
  const name = printPartition(partition);
  if (unfinishedParts.length === 0) return `${name}, all parts are merged`;
  return `${name}, not finished yet: ${unfinishedParts.map((part) => printPartition(part.partition)).join(', ')}`;
}

function printResult(result: BuildResult): string {
  return printPairs([
    ['cache', result.wasComplete ? `${result.out} (was complete already)` : result.out],
    ['part', printParts(result)],
    ['rows', printCount(result.rows)],
    ['tokens', printCount(result.tokens)],
    ['labels at', `${printCount(result.labelPositions)} positions`],
    ['size', printBytes(result.size.totalBytes)],
    ...printGroups(result.size),
    ['speed', result.wasComplete ? undefined : `${printCount(result.tokensPerSecond)} tokens/s`],
    ['peak memory', printBytes(result.peakRssBytes)],
    ['digest', result.cacheDigest ?? undefined],
  ]);
}
