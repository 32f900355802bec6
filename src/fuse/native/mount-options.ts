import type { ServeOptions } from '../transport.js';

/** What libfuse 2 asks for in one READ: it knows no larger requests. */
const MAX_READ = 128 * 1024;

/** Seconds that the kernel may believe what we said: the tree is frozen, so for as long as it likes. */
const FOREVER = 0x3fffffff;

/** libfuse splits options at commas; a backslash makes the next character an ordinary one. */
function escapeOption(value: string): string {
  return value.replace(/[\\,]/g, '\\$&');
}

/** libfuse's mount options, see mount.fuse(8), as the one argument that fuse-native takes. */
export function mountOptions({ source, directIo, allowOther }: ServeOptions): string {
  const options = [
    'ro',
    'nosuid',
    'nodev',
    'noexec',
    'default_permissions',
    `fsname=${escapeOption(source)}`,
    'subtype=chunkmount',
    `max_read=${MAX_READ}`,
    'use_ino',
    `attr_timeout=${FOREVER}`,
    `entry_timeout=${FOREVER}`,
    `negative_timeout=${FOREVER}`,
    directIo ? 'direct_io' : 'kernel_cache',
    ...(allowOther ? ['allow_other'] : []),
  ];
  return `-o${options.join(',')}`;
}
