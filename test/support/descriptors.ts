import * as fs from 'node:fs';

const DIRECTORY = '/proc/self/fd';

/** What this process has descriptors of, as proc_pid_fd(5) shows it. */
export function openFiles(): string[] {
  return fs.readdirSync(DIRECTORY).flatMap((fd) => {
    try {
      return [fs.readlinkSync(`${DIRECTORY}/${fd}`)];
    } catch {
      // Closed meanwhile, as the one of the listing is.
      return [];
    }
  });
}

/** How many descriptors this process has. */
export function openDescriptors(): number {
  return fs.readdirSync(DIRECTORY).length;
}

/** Whether this process has a descriptor of that file. */
export function isOpen(file: string): boolean {
  return openFiles().includes(file);
}
