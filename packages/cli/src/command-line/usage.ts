import { StillhouseError } from '@stillhouse/errors';
import type { CommanderError } from 'commander';

const quoted = /'([^']+)'/;

/** The parser's complaint about a command line in our own words. */
export function explainUsage(error: CommanderError): StillhouseError {
  const named = quoted.exec(error.message)?.[1] ?? 'command line';
  const similar = /\(Did you mean (?:one of )?(.+?)\?\)/.exec(error.message)?.[1];
  const guess = similar === undefined ? '' : `Did you mean ${similar}? `;
  const remedy = `${guess}See --help for all there is`;
  switch (error.code) {
    case 'commander.unknownOption':
      return new StillhouseError({
        code: 'SETTING_UNKNOWN',
        where: named,
        problem: 'there is no such flag',
        remedy,
      });
    case 'commander.unknownCommand':
      return new StillhouseError({
        code: 'COMMAND_UNKNOWN',
        where: named,
        problem: 'there is no such command',
        remedy,
      });
    case 'commander.optionMissingArgument':
      return new StillhouseError({
        code: 'SETTING_MISSING',
        where: named,
        problem: 'the value is missing',
        remedy: `Give ${named}`,
      });
    case 'commander.missingArgument':
      return new StillhouseError({
        code: 'SETTING_MISSING',
        where: named,
        problem: 'the argument is required',
        remedy,
      });
    default:
      return new StillhouseError({
        code: 'ARGUMENT_UNEXPECTED',
        where: 'command line',
        problem: error.message.replace(/^error: /, '').replace(/\.?\n?$/, ''),
        remedy,
      });
  }
}
