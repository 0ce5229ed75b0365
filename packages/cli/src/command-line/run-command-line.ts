import { readFileSync } from 'node:fs';
import { type GivenSettings, readRecipeFile, resolveWithRecipe } from '@stillhouse/settings';
import { Command, CommanderError } from 'commander';
import { EXIT_SUCCESS, EXIT_USAGE } from '../failure.ts';
import { COMMAND_GROUPS, COMMANDS, type ListedCommand } from './catalogue.ts';
import type { CommandContext, LoadedCommand } from './command.ts';
import { addFlags, readFlags } from './flags.ts';
import { explainUsage } from './usage.ts';
import { writeRecipeFile } from './written-recipe.ts';

/**
 * Parses a command line and runs the command it names; the result goes to standard output.
 * @returns the exit code
 * @throws StillhouseError COMMAND_UNKNOWN, SETTING_UNKNOWN, SETTING_INVALID, SETTING_MISSING, ARGUMENT_UNEXPECTED,
 *   RECIPE_NOT_READABLE, RECIPE_NOT_JSON, and whatever the command throws
 */
export async function runCommandLine(args: readonly string[], context: CommandContext): Promise<number> {
  const { program, commands } = createProgram();
  let exitCode = EXIT_SUCCESS;
  const asked = findCommand(args);
  if (asked !== undefined) {
    const loaded = await asked.load();
    const command = commands.get(asked.name)!;
    for (const argument of [loaded.argument, loaded.secondArgument]) {
      if (argument !== undefined) command.argument(`<${argument}>`, loaded.settings[argument]!.help);
    }
    if (loaded.furtherArguments !== undefined) {
      command.argument(`[${loaded.furtherArguments}...]`, loaded.settings[loaded.furtherArguments]!.help);
    }
    addFlags(command, loaded.settings, [loaded.argument, loaded.secondArgument, loaded.furtherArguments]);
    if (asked.hasRecipe) {
      command.option(
        '--recipe <FILE.json>',
        'settings from a file, by the names of the flags in camel case; flags go before it',
      );
    }
    command.option('--json', 'print the result as one JSON document');
    command.action(async () => {
      exitCode = await runCommand(command, loaded, context);
    });
  }
  try {
    await program.parseAsync(args, { from: 'user' });
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    if (error.exitCode === 0) return EXIT_SUCCESS;
    // The help of an incomplete command line went to standard error.
    if (error.code === 'commander.help') return EXIT_USAGE;
    throw explainUsage(error);
  }
  return exitCode;
}

async function runCommand(command: Command, loaded: LoadedCommand, context: CommandContext): Promise<number> {
  const { json, recipe: recipePath } = command.opts<{ readonly json?: boolean; readonly recipe?: string }>();
  const flags = readFlags(command, loaded.settings);
  const argument = {
    ...(loaded.argument === undefined ? {} : { [loaded.argument]: command.args[0] }),
    ...(loaded.secondArgument === undefined ? {} : { [loaded.secondArgument]: command.args[1] }),
    ...(loaded.furtherArguments === undefined || command.args.length < 2
      ? {}
      : { [loaded.furtherArguments]: command.args.slice(1) }),
  };
  const given = { ...flags, ...argument };
  const settings = await resolveGiven(loaded, given, recipePath);
  const { result, summary, exitCode, recipeFile } = await loaded.run(settings, context, given);
  if (recipeFile !== undefined) await writeRecipeFile(recipeFile, settings);
  console.log(json === true ? JSON.stringify(result, null, 2) : summary);
  return exitCode ?? EXIT_SUCCESS;
}

/** All settings, with stages where the recipe has some and the command knows any. */
async function resolveGiven(
  { settings: table, resolveStages }: LoadedCommand,
  given: GivenSettings,
  path: string | undefined,
): Promise<GivenSettings> {
  if (path === undefined) return resolveWithRecipe(table, given, undefined);
  const { stages, ...rest } = await readRecipeFile(path);
  if (stages === undefined) return resolveWithRecipe(table, given, { path, settings: rest });
  // To a command that knows none, it is a setting like any other unknown one.
  if (resolveStages === undefined) return resolveWithRecipe(table, given, { path, settings: { stages, ...rest } });
  const settings = resolveWithRecipe(table, given, { path, settings: rest });
  return { ...settings, stages: resolveStages(stages, rest, given, path) };
}

/** The command that the leading words name, also behind `help`. */
function findCommand(args: readonly string[]): ListedCommand | undefined {
  const rest = args[0] === 'help' ? args.slice(1) : args;
  // The longest name: `sweep report` is no sweep.
  return COMMANDS.filter(({ name }) => name.split(' ').every((word, index) => rest[index] === word)).sort(
    (one, other) => other.name.length - one.name.length,
  )[0];
}

function createProgram(): { readonly program: Command; readonly commands: ReadonlyMap<string, Command> } {
  const program = prepare(new Command('stillhouse'))
    .description('Distils a teacher language model into a student: run the teacher once, train from its cache.')
    .version(readVersion(), '--version', 'print the version');
  const groups = new Map<string, Command>();
  const commands = new Map<string, Command>();
  for (const { name, summary, usage } of COMMANDS) {
    const words = name.split(' ');
    const last = words.pop()!;
    const parent = words.reduce((above, word) => {
      const group =
        commands.get(word) ?? groups.get(word) ?? prepare(above.command(word)).description(COMMAND_GROUPS[word] ?? '');
      groups.set(word, group);
      return group;
    }, program);
    commands.set(name, prepare(parent.command(last)).description(summary).usage(usage));
  }
  return { program, commands };
}

function prepare(command: Command): Command {
  return command
    .exitOverride()
    .helpOption('--help, -h', 'print this help')
    .showSuggestionAfterError(true)
    .configureHelp({ helpWidth: process.stdout.columns ?? 100 })
    .configureOutput({ outputError: () => {} });
}

function readVersion(): string {
  const text = readFileSync(new URL('../../package.json', import.meta.url), 'utf8');
  return (JSON.parse(text) as { readonly version: string }).version;
}
