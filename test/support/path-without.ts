import * as fs from 'node:fs';
import * as path from 'node:path';

/**
 * A PATH on which all programs are but some: one directory of links to everything else that PATH has now. `directory` is
 * made, and must not exist yet.
 */
export function pathWithout(directory: string, ...missing: readonly string[]): { readonly PATH: string } {
  fs.mkdirSync(directory, { recursive: true });
  const seen = new Set(missing);
  for (const place of (process.env.PATH ?? '').split(':').filter((one) => fs.existsSync(one))) {
    for (const name of fs.readdirSync(place)) {
      if (seen.has(name)) continue;
      seen.add(name);
      fs.symlinkSync(path.join(place, name), path.join(directory, name));
    }
  }
  return { PATH: directory };
}
