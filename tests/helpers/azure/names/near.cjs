// Names below .localhost are this machine, for the storage emulator too, wherever its resolver lacks them.
const dns = require("dns");
const lookup = dns.lookup;
dns.lookup = (host, ...rest) => lookup(host.endsWith(".localhost") ? "127.0.0.1" : host, ...rest);
