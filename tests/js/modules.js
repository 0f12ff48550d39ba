// node --import ./modules.js: packages are found wherever the importing file lies. See resolve.js.
import { register } from "node:module";

register("./resolve.js", import.meta.url);
