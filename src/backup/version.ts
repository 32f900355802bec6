import * as fs from 'node:fs';
import { packageFile } from '../host/program-files.js';

/** Our own version, from package.json. */
export function toolVersion(): string {
  const text = fs.readFileSync(packageFile('package.json'), 'utf8');
  return (JSON.parse(text) as { version: string }).version;
}
