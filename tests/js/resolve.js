// The browser client and its React package have no node_modules of their own: what they and their tests import by name
// comes from here, or from the folder that RAWSTREAM_NODE_MODULES names (it has the node_modules folder inside).
import { isBuiltin } from "node:module";
import { pathToFileURL } from "node:url";

const folder = process.env.RAWSTREAM_NODE_MODULES;
const base = folder ? pathToFileURL(`${folder}/`).href : import.meta.url;

export async function resolve(specifier, context, next) {
  const named = !/^[./#]|^\w+:/.test(specifier) && !isBuiltin(specifier);
  const outside = named && !context.parentURL?.includes("/node_modules/");
  return next(specifier, outside ? { ...context, parentURL: base } : context);
}
