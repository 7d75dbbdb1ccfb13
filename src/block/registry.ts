/**
 * The drivers an engine knows, by name. The array comes from outside, so a program may leave some out or add its own.
 */
import { BlockError } from '../util/errors.ts';
import type { DriverDefinition } from './driver.ts';

export class DriverRegistry {
  private readonly byName = new Map<string, DriverDefinition>();

  constructor(drivers: readonly DriverDefinition[]) {
    for (const driver of drivers) {
      if (this.byName.has(driver.name)) throw new BlockError('name-in-use', `two drivers are named '${driver.name}'`);
      this.byName.set(driver.name, driver);
    }
  }

  /** @throws BlockError `invalid-option`, naming the drivers there are */
  find(name: string): DriverDefinition {
    const driver = this.byName.get(name);
    if (driver !== undefined) return driver;
    const known = [...this.byName.keys()].join(', ');
    throw new BlockError('invalid-option', `there is no driver '${name}'; there are: ${known}`);
  }

  list(): readonly DriverDefinition[] {
    return [...this.byName.values()];
  }
}
