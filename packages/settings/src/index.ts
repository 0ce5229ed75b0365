/**
 * Settings are declared once, as a table of fields. From it come the type, the defaults, the check of a recipe file
 * and the command-line flags, so that every flag is a recipe key and the reverse.
 */
export {
  boolean,
  choice,
  type Field,
  integer,
  list,
  number,
  type SettingsOf,
  type SettingsTable,
  text,
} from './fields.ts';
export { type GivenSettings, readRecipeFile, resolveWithRecipe } from './recipe-file.ts';
export { flagOf, parseFlagValue, requireSetting, resolveSettings } from './resolve.ts';
