/** What a record log is opened with. */
import type { RecordVisitor } from './record-scan.ts';
import type { Superblock } from './record-superblock.ts';

export interface RecordLogOptions {
  /** for messages: the path or node name */
  readonly where: string;
  /** the volume that the log belongs to; a log of another one is refused */
  readonly volume: string;
  readonly generation: string;
  /** what tells one boot of the host from the next */
  readonly bootId: string;
  /** false: nothing is synced but by `sync`, and after another boot all is lost (record-log.md 8) */
  readonly durable: boolean;
  /** bytes by which the file is extended ahead of need */
  readonly growBytes: number;
  /** what the log's user keeps in the superblock of a new log */
  readonly user: Superblock['user'];
}

/** What the log's user makes of what is found: told what it kept in the superblock, before the records. */
export type RecordReader = (user: Superblock['user']) => RecordVisitor;
