-- A script for wrk: send the requests of a file in a loop, and print the results as one line of JSON.
--   wrk … -s load.lua http://host:port -- REQUESTS_FILE
-- The file contains complete HTTP requests, each after a line with its length (tools/benchmark/loads.py).

local threads = 0

function setup(thread)
    -- Each thread starts at another place in the list.
    thread:set("start", threads)
    threads = threads + 1
end

function init(args)
    requests = {}
    local file = assert(io.open(args[1], "rb"))
    while true do
        local length = file:read("*n")
        if not length then break end
        file:read(1)
        requests[#requests + 1] = file:read(length)
    end
    file:close()
    at = start * 997 % #requests
end

function request()
    at = at % #requests + 1
    return requests[at]
end

function done(summary, latency, _)
    local errors = summary.errors
    io.write(string.format(
        '\ncauseway {"requests":%d,"duration_us":%d,"p50_us":%d,"p99_us":%d,"statuses":%d,"sockets":%d,"timeouts":%d}\n',
        summary.requests, summary.duration, latency:percentile(50.0), latency:percentile(99.0),
        errors.status, errors.connect + errors.read + errors.write, errors.timeout))
end
