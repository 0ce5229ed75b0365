const MONTHS = 'January February March April May June July August September October November December'.split(' ');
const DAYS = 'Sunday Monday Tuesday Wednesday Thursday Friday Saturday'.split(' ');

/**
 * Python's `date.strftime(format)` in local time and the C locale, for the directives that chat templates use:
 * `%Y %y %m %d %e %b %B %a %A %j %H %I %p %M %S %%`, each also with glibc's `%-` (no padding). Others stay as they are.
 */
export function strftime(date: Date, format: string): string {
  return format.replace(/%(-?)([YymdebBaAjHIpMS%])/g, (_, dash: string, directive: string) => {
    const text = formatDirective(date, directive);
    return dash === '' ? text : text.replace(/^[0 ]+(?=\d)/, '');
  });
}

function formatDirective(date: Date, directive: string): string {
  const pad = (value: number, width = 2) => String(value).padStart(width, '0');
  const month = MONTHS[date.getMonth()]!;
  const day = DAYS[date.getDay()]!;
  const year = date.getFullYear();
  switch (directive) {
    case 'Y':
      return String(year);
    case 'y':
      return pad(year % 100);
    case 'm':
      return pad(date.getMonth() + 1);
    case 'd':
      return pad(date.getDate());
    case 'e':
      return String(date.getDate()).padStart(2, ' ');
    case 'b':
      return month.slice(0, 3);
    case 'B':
      return month;
    case 'a':
      return day.slice(0, 3);
    case 'A':
      return day;
    case 'j':
      return pad(
        Math.round((Date.UTC(year, date.getMonth(), date.getDate()) - Date.UTC(year, 0, 1)) / 86_400_000) + 1,
        3,
      );
    case 'H':
      return pad(date.getHours());
    case 'I':
      return pad(date.getHours() % 12 || 12);
    case 'p':
      return date.getHours() < 12 ? 'AM' : 'PM';
    case 'M':
      return pad(date.getMinutes());
    case 'S':
      return pad(date.getSeconds());
    default:
      return '%';
  }
}
