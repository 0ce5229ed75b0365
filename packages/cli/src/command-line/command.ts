import type { SettingsOf, SettingsTable } from '@stillhouse/settings';
import type { Progress, ProgressOptions } from '../terminal/progress.ts';

/** What a command may use of the terminal. */
export interface CommandContext {
  /** A remark on standard error: what will be done, where. */
  note(line: string): void;
  openProgress(options: ProgressOptions): Progress;
  /**
   * From now on the first SIGINT or SIGTERM is told to `stop` and ends nothing, so that the command can come to a good
   * end by itself; the second ends the process at once, as the first would have without this.
   */
  onInterrupt(stop: (signal: NodeJS.Signals) => void): void;
}

export interface Outcome {
  /** The JSON document that `--json` prints. */
  readonly result: unknown;
  /** What is printed without `--json`. */
  readonly summary: string;
  /** Not 0 when the command did its work and what it found is bad. */
  readonly exitCode?: number;
  /** Where the resolved settings belong; left out where nothing was written or the settings are there already. */
  readonly recipeFile?: string;
}

type GivenSettings = Readonly<Record<string, unknown>>;
type ResolveStages = (stages: unknown, recipe: GivenSettings, flags: GivenSettings, path: string) => unknown;

/** A command once its packages are loaded. */
export interface LoadedCommand {
  readonly settings: SettingsTable;
  /** The setting given as a plain argument rather than as a flag. */
  readonly argument?: string;
  /** The setting given as a second plain argument, which is required. */
  readonly secondArgument?: string;
  /** The list setting that takes all further plain arguments. */
  readonly furtherArguments?: string;
  /**
   * Reads what a recipe has under `stages`, for commands whose recipes may have any; the result goes to `run` under
   * that name.
   * @param recipe the other settings of the recipe
   * @param flags what was given on the command line
   * @param path of the recipe
   */
  readonly resolveStages?: ResolveStages;
  /** @param given what was given on the command line, without defaults */
  run(
    settings: Readonly<Record<string, unknown>>,
    context: CommandContext,
    given: Readonly<Record<string, unknown>>,
  ): Promise<Outcome>;
}

/** Ties a table of settings to the function that works with them. */
export function defineCommand<const Table extends SettingsTable, Stages = never>(definition: {
  readonly settings: Table;
  readonly argument?: keyof Table & string;
  readonly secondArgument?: keyof Table & string;
  readonly furtherArguments?: keyof Table & string;
  readonly resolveStages?: (...args: Parameters<ResolveStages>) => Stages;
  readonly run: (
    settings: SettingsOf<Table> & { readonly stages?: Stages },
    context: CommandContext,
    given: Readonly<Record<string, unknown>>,
  ) => Promise<Outcome>;
}): LoadedCommand {
  // The settings were resolved from this very table.
  return definition as unknown as LoadedCommand;
}
