import * as fs from 'node:fs';

/** Our own version, from package.json. */
export function toolVersion(): string {
  const text = fs.readFileSync(new URL('../../package.json', import.meta.url), 'utf8');
  return (JSON.parse(text) as { version: string }).version;
}
