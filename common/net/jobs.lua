#!lua name=shoal_jobs_v2
-- Durable batch jobs as a library of server-side functions (docs/design.md, "Jobs"). Each function
-- runs alone and either refuses before its first write or completes. It is loaded once under a name
-- that carries its version and never replaced: a changed text needs a new name.
--
-- Keys, after the prefix P = "shoal:{<cluster>}:":
--   meta            hash   uuid, incarnation, revision, confirmed, fence, bytes, sequence
--   uploads         zset   upload -> when it is forgotten; upload:<u> hash next, reserve
--   items:<u>       hash   index -> line
--   jobs            zset   job -> sequence; exp zset job -> deadline
--   queued          set    jobs that nobody has begun, for their number
--   job:<j>         hash   everything about the job; idem:<tenant>:<key> string job + hash
--   claim:<j>       hash   index -> "process attempt deaths epoch"; process 0 is nobody
--   ret:<j>         list   returned indices
--   res:<j>, idx:<j> hash  completion -> record; index -> completion
--   prio:<d>        zset   priorities that have jobs; q:<d>:<p> zset tenant -> tokens served
--   qt:<d>:<p>:<t>  zset   job -> sequence, jobs with items to claim; served:<d>:<p> hash
--   proc:<process>  set    "job:index:attempt"; claimed:<process> hash deployment -> last claim
--   procs, gone     set of processes with claims; zset of processes that may claim no more
--   req:<id>        hash   session pointer
-- Every call gives P as its key and uuid and incarnation as its first two arguments. The second
-- half of the library is jobs_whole.lua: both files are joined and loaded as one.
-- redis.call does not exist yet while the library is loaded, so it is looked up at each use.
local function call(...) return redis.call(...) end
local PAGE_BYTES = 4 * 1024 * 1024
local ENDED = {succeeded = true, cancelled = true, expired = true}
local FIELDS = {'id', 'deployment', 'tenant', 'name', 'key', 'priority', 'state', 'total',
  'running', 'succeeded', 'failed', 'cancelled', 'expired', 'prompt_tokens', 'completion_tokens',
  'cached_tokens', 'create_ms', 'start_ms', 'end_ms', 'deadline_ms', 'version', 'sequence'}

local function now_ms()
  local t = call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

local function whole(x) return string.format('%.0f', x) end

-- Is this the store the caller believes it to be? An emptied one has no meta, so nothing passes.
local function strange(P, args)
  local m = call('HMGET', P .. 'meta', 'uuid', 'incarnation')
  if m[1] == args[1] and m[2] == args[2] then return nil end
  if not m[1] then
    return {'WRONG_STORE', 'redis holds no cluster: it was emptied; shoal adopt redis'}
  end
  return {'WRONG_STORE', 'redis belongs to cluster ' .. m[1] .. ' incarnation ' .. m[2] ..
    ', the caller to ' .. args[1] .. ' incarnation ' .. args[2]}
end

local function snapshot(P, id) return call('HMGET', P .. 'job:' .. id, unpack(FIELDS)) end

local JOB = {'state', 'total', 'done', 'deployment', 'priority', 'tenant', 'deadline_ms',
  'item_tokens', 'cursor', 'sequence', 'upload', 'seed'}
local NUMBERS = {total = true, done = true, deadline_ms = true, item_tokens = true, cursor = true}

local function load_job(P, id)
  local v = call('HMGET', P .. 'job:' .. id, unpack(JOB))
  if not v[1] then return nil end
  local job = {id = id}
  for i, name in ipairs(JOB) do job[name] = NUMBERS[name] and tonumber(v[i]) or v[i] end
  return job
end

-- The queue: jobs with something to claim, per deployment, priority and tenant.
local function queue_keys(P, job)
  local base = job.deployment .. ':' .. job.priority
  return P .. 'q:' .. base, P .. 'qt:' .. base .. ':' .. job.tenant, P .. 'served:' .. base
end

local function enqueue(P, job)
  local q, qt, served = queue_keys(P, job)
  call('ZADD', qt, job.sequence, job.id)
  if call('ZSCORE', q, job.tenant) then return end
  -- A tenant that comes back starts no lower than the least served, so idling earns no credit.
  local first = call('ZRANGE', q, 0, 0, 'WITHSCORES')
  local score = math.max(tonumber(call('HGET', served, job.tenant) or 0), tonumber(first[2] or 0))
  call('ZADD', q, whole(score), job.tenant)
  call('ZADD', P .. 'prio:' .. job.deployment, -tonumber(job.priority), job.priority)
end

local function unqueue(P, job)
  local q, qt, served = queue_keys(P, job)
  call('ZREM', qt, job.id)
  if call('EXISTS', qt) == 1 then return end
  local score = call('ZSCORE', q, job.tenant)
  if not score then return end
  -- Tenants are names from outside: the memory of what they were served is bounded.
  if call('HLEN', served) >= 10000 then call('UNLINK', served) end
  call('HSET', served, job.tenant, whole(tonumber(score)))
  call('ZREM', q, job.tenant)
  if call('EXISTS', q) == 0 then call('ZREM', P .. 'prio:' .. job.deployment, job.priority) end
end

local function charge(P, job, tokens)
  local q, _, served = queue_keys(P, job)
  local score = call('ZSCORE', q, job.tenant)
  if score then
    call('ZADD', q, whole(math.max(0, tonumber(score) + tokens)), job.tenant)
  else
    local old = call('HGET', served, job.tenant)
    if old then call('HSET', served, job.tenant, whole(math.max(0, tonumber(old) + tokens))) end
  end
end

local function entry(id, index, attempt) return id .. ':' .. index .. ':' .. attempt end

-- Ends the job and with it every item that has no record; the records are written by whoever reads
-- the results, so this is O(1) for any size. Entries in proc:* are dropped as they are met.
local function flip(P, job, state, now)
  local key = P .. 'job:' .. job.id
  call('HSET', key, 'state', state, 'end_ms', whole(now), 'running', 0, 'fill', 0,
    state, whole(job.total - job.done))
  call('HINCRBY', key, 'version', 1)
  call('UNLINK', P .. 'claim:' .. job.id, P .. 'ret:' .. job.id)
  call('ZREM', P .. 'exp', job.id)
  call('SREM', P .. 'queued', job.id)
  unqueue(P, job)
  job.state = state
end

local function overdue(job, now)
  return not ENDED[job.state] and job.deadline_ms > 0 and now >= job.deadline_ms
end

local function read_claim(P, id, index)
  local text = call('HGET', P .. 'claim:' .. id, index)
  if not text then return nil end
  local process, attempt, deaths, epoch = string.match(text, '^(%S+) (%d+) (%d+) (%d+)$')
  return {process = process, attempt = tonumber(attempt), deaths = tonumber(deaths), epoch = epoch}
end

local function write_claim(P, id, index, c)
  call('HSET', P .. 'claim:' .. id, index,
    c.process .. ' ' .. whole(c.attempt) .. ' ' .. whole(c.deaths) .. ' ' .. c.epoch)
end

local function read_record(P, job, completion)
  local text = call('HGET', P .. 'res:' .. job.id, completion)
  local index, ended, attempts, at = string.match(text, '^(%d+) (%a+) (%d+)\n()')
  -- The line stands in for the record, so that the reader can name the item as its user did.
  local body = ''
  if ended == 'cancelled' or ended == 'expired' then
    body = call('HGET', P .. 'items:' .. job.upload, index) or ''
  end
  return {tonumber(completion), tonumber(index), tonumber(attempts), ended, string.sub(text, at),
    body}
end

-- The checks that complete, fail, release and note_death share. Returns job and claim when the
-- caller holds the item now, else the answer.
local function held(P, args)
  local id, index, process, attempt = args[3], args[4], args[5], tonumber(args[6])
  local mine = P .. 'proc:' .. process
  local job = load_job(P, id)
  if not job then
    call('SREM', mine, entry(id, index, args[6]))
    return nil, nil, {'NOT_FOUND', 'job ' .. id .. ' was deleted or never was'}
  end
  if not tonumber(index) or tonumber(index) >= job.total then
    return nil, nil, {'INVALID', 'job ' .. id .. ' has no item ' .. index}
  end
  local stored = call('HGET', P .. 'idx:' .. id, index)
  if stored then
    call('SREM', mine, entry(id, index, args[6]))
    return nil, nil, {'DUP', 'item ' .. index .. ' has a result', read_record(P, job, stored)}
  end
  local now = now_ms()
  if overdue(job, now) then flip(P, job, 'expired', now) end
  if ENDED[job.state] then
    call('SREM', mine, entry(id, index, args[6]))
    return nil, nil, {'DUP', 'job ' .. id .. ' is ' .. job.state,
      {0, tonumber(index), attempt, job.state, '', ''}}
  end
  local claim = read_claim(P, id, index)
  if not claim or claim.attempt ~= attempt or
    (claim.process ~= process and claim.process ~= '0') then
    return nil, nil, {'STALE', 'item ' .. index .. ' of job ' .. id .. ' is claimed otherwise'}
  end
  return job, claim, nil
end

local function put_back(P, job, index, claim)
  call('SREM', P .. 'proc:' .. claim.process, entry(job.id, index, whole(claim.attempt)))
  claim.process = '0'
  write_claim(P, job.id, index, claim)
  call('RPUSH', P .. 'ret:' .. job.id, index)
  enqueue(P, job)
  charge(P, job, -job.item_tokens)
  local key = P .. 'job:' .. job.id
  call('HINCRBY', key, 'running', -1)
  call('HINCRBY', key, 'version', 1)
end

local F = {}

---- intake ----

local function forget_upload(P, upload)
  local reserve = call('HGET', P .. 'upload:' .. upload, 'reserve')
  if reserve then
    call('HINCRBY', P .. 'meta', 'bytes', '-' .. reserve)
    call('UNLINK', P .. 'upload:' .. upload, P .. 'items:' .. upload)
  end
  call('ZREM', P .. 'uploads', upload)
end

local function purge_uploads(P, now)
  for _, u in ipairs(call('ZRANGEBYSCORE', P .. 'uploads', '-inf', whole(now), 'LIMIT', 0, 10)) do
    forget_upload(P, u)
  end
end

-- upload, first, reserve, bytes_max, ttl_ms, bodies...
function F.put(P, args)
  local upload, first, reserve = args[3], tonumber(args[4]), tonumber(args[5])
  local n, bytes = #args - 7, 0
  for i = 8, #args do bytes = bytes + #args[i] end
  if n < 1 or n > 1000 or bytes > 1048576 or first + n > 1000000 then
    return {'INVALID', 'a chunk has 1 to 1,000 items and at most 1 MiB, a job at most 1,000,000'}
  end
  local now = now_ms()
  purge_uploads(P, now)
  local next = tonumber(call('HGET', P .. 'upload:' .. upload, 'next') or 0)
  if first + n <= next then return {'OK', ''} end
  if first ~= next then
    return {'CONFLICT', 'the upload holds ' .. whole(next) .. ' items, the chunk begins at ' ..
      args[4]}
  end
  local used = tonumber(call('HGET', P .. 'meta', 'bytes') or 0)
  if used + reserve > tonumber(args[6]) then
    return {'FULL', 'jobs hold ' .. whole(used) .. ' of ' .. args[6] ..
      ' bytes; delete finished jobs or raise --jobs-bytes-max'}
  end
  local pairs_of = {}
  for i = 1, n do
    pairs_of[2 * i - 1] = whole(first + i - 1)
    pairs_of[2 * i] = args[7 + i]
  end
  call('HSET', P .. 'items:' .. upload, unpack(pairs_of))
  call('HSET', P .. 'upload:' .. upload, 'next', whole(first + n))
  call('HINCRBY', P .. 'upload:' .. upload, 'reserve', whole(reserve))
  call('HINCRBY', P .. 'meta', 'bytes', whole(reserve))
  call('ZADD', P .. 'uploads', whole(now + tonumber(args[7])), upload)
  return {'OK', ''}
end

function F.drop(P, args)
  forget_upload(P, args[3])
  return {'OK', ''}
end

-- job, upload, total, deployment, tenant, name, key, hash, priority, deadline_ms, seed, item_tokens
function F.submit(P, args)
  local id, upload, total = args[3], args[4], tonumber(args[5])
  local deployment, tenant, key, hash = args[6], args[7], args[9], args[10]
  if call('EXISTS', P .. 'job:' .. id) == 1 then
    return {'DUP', 'the job exists', snapshot(P, id)}
  end
  local idem = P .. 'idem:' .. #tenant .. ':' .. tenant .. ':' .. key
  if key ~= '' then
    local other, other_hash = string.match(call('GET', idem) or '', '^(%S+) (%S*)$')
    if other and call('EXISTS', P .. 'job:' .. other) == 1 then
      if other_hash ~= hash then
        return {'CONFLICT', 'idempotency key "' .. key .. '" stands for job ' .. other ..
          ', which has other items'}
      end
      forget_upload(P, upload)
      return {'DUP', 'the key stands for job ' .. other, snapshot(P, other)}
    end
  end
  if string.find(deployment, ':', 1, true) or total < 1 then
    return {'INVALID', 'a job has at least one item and a deployment without ":"'}
  end
  local up = call('HMGET', P .. 'upload:' .. upload, 'next', 'reserve')
  if not up[1] then return {'NOT_FOUND', 'the upload expired; put the items again'} end
  if tonumber(up[1]) ~= total then
    return {'CONFLICT', 'the upload holds ' .. up[1] .. ' items, not ' .. args[5]}
  end
  local now, deadline = now_ms(), tonumber(args[12])
  if deadline > 0 then deadline = now + deadline end
  local sequence = call('HINCRBY', P .. 'meta', 'sequence', 1)
  call('HSET', P .. 'job:' .. id, 'id', id, 'upload', upload, 'total', args[5],
    'deployment', deployment, 'tenant', tenant, 'name', args[8], 'key', key, 'hash', hash,
    'priority', args[11], 'deadline_ms', whole(deadline), 'seed', args[13],
    'item_tokens', args[14], 'reserve', up[2],
    'state', 'queued', 'cursor', 0, 'done', 0, 'running', 0, 'succeeded', 0, 'failed', 0,
    'cancelled', 0, 'expired', 0, 'prompt_tokens', 0, 'completion_tokens', 0, 'cached_tokens', 0,
    'create_ms', whole(now), 'start_ms', 0, 'end_ms', 0, 'version', 1, 'sequence', sequence)
  if key ~= '' then call('SET', idem, id .. ' ' .. hash) end
  call('ZADD', P .. 'jobs', sequence, id)
  call('SADD', P .. 'queued', id)
  if deadline > 0 then call('ZADD', P .. 'exp', whole(deadline), id) end
  call('DEL', P .. 'upload:' .. upload)
  call('ZREM', P .. 'uploads', upload)
  enqueue(P, load_job(P, id))
  return {'OK', '', snapshot(P, id)}
end

---- claims ----

local function item(P, job, index, claim, now)
  local left = 0
  if job.deadline_ms > 0 then left = math.max(1, job.deadline_ms - now) end
  return {job.id, tonumber(index), claim.attempt, claim.deaths, job.seed, left,
    tonumber(job.priority), job.tenant, job.deployment,
    call('HGET', P .. 'items:' .. job.upload, index) or ''}
end

-- The item behind an entry of proc:<process>, if that process still holds it.
local function item_of_entry(P, text, process, now)
  local id, index, attempt = string.match(text, '^(%w+):(%d+):(%d+)$')
  local job = id and load_job(P, id)
  if not job or ENDED[job.state] then return nil end
  local claim = read_claim(P, id, index)
  if not claim or claim.process ~= process or claim.attempt ~= tonumber(attempt) then return nil end
  return item(P, job, index, claim, now), job, index, claim
end

local function take_item(P, job, process, now)
  local key = P .. 'job:' .. job.id
  local index = call('LPOP', P .. 'ret:' .. job.id)
  if not index then
    index = whole(job.cursor)
    job.cursor = job.cursor + 1
    call('HSET', key, 'cursor', whole(job.cursor))
  end
  local claim = read_claim(P, job.id, index) or {attempt = 0, deaths = 0, epoch = '0'}
  claim.attempt = claim.attempt + 1
  claim.process = process
  write_claim(P, job.id, index, claim)
  call('SADD', P .. 'proc:' .. process, entry(job.id, index, whole(claim.attempt)))
  if job.state == 'queued' then
    job.state = 'running'
    call('HSET', key, 'state', 'running', 'start_ms', whole(now))
    call('SREM', P .. 'queued', job.id)
  end
  call('HINCRBY', key, 'running', 1)
  call('HINCRBY', key, 'version', 1)
  charge(P, job, job.item_tokens)
  if job.cursor >= job.total and call('EXISTS', P .. 'ret:' .. job.id) == 0 then unqueue(P, job) end
  return item(P, job, index, claim, now), entry(job.id, index, whole(claim.attempt))
end

-- deployment, n, process, nonce
function F.claim(P, args)
  local deployment, n, process, nonce = args[3], tonumber(args[4]), args[5], tonumber(args[6])
  if call('ZSCORE', P .. 'gone', process) then
    return {'STALE', 'process ' .. process .. ' was released'}
  end
  local items, entries, now = {}, {}, now_ms()
  local last = call('HGET', P .. 'claimed:' .. process, deployment)
  if last then
    local last_nonce = tonumber(string.match(last, '^%d+'))
    if nonce < last_nonce then return {'STALE', 'a later claim was made'} end
    if nonce == last_nonce then
      for text in string.gmatch(last, ' (%S+)') do
        items[#items + 1] = item_of_entry(P, text, process, now)
      end
      return {'OK', '', items}
    end
  end
  local jobs, removed, bytes = {}, 0, 0
  while #items < n and removed < 100 and bytes < PAGE_BYTES do
    local priority = call('ZRANGE', P .. 'prio:' .. deployment, 0, 0)[1]
    if not priority then break end
    local base = deployment .. ':' .. priority
    local tenant = call('ZRANGE', P .. 'q:' .. base, 0, 0)[1]
    local id = call('ZRANGE', P .. 'qt:' .. base .. ':' .. tenant, 0, 0)[1]
    local job = jobs[id] or load_job(P, id)
    jobs[id] = job
    if overdue(job, now) then
      flip(P, job, 'expired', now)
      removed = removed + 1
    else
      items[#items + 1], entries[#entries + 1] = take_item(P, job, process, now)
      bytes = bytes + #items[#items][10]
    end
  end
  call('HSET', P .. 'claimed:' .. process, deployment,
    args[6] .. (#entries > 0 and ' ' .. table.concat(entries, ' ') or ''))
  call('SADD', P .. 'procs', process)
  return {'OK', '', items}
end

-- process, cursor
function F.mine(P, args)
  local page = call('SSCAN', P .. 'proc:' .. args[3], args[4], 'COUNT', 100)
  local items, now = {}, now_ms()
  for _, text in ipairs(page[2]) do
    local it = item_of_entry(P, text, args[3], now)
    if it then items[#items + 1] = it else call('SREM', P .. 'proc:' .. args[3], text) end
  end
  return {'OK', '', items, tonumber(page[1])}
end

-- Walks at most 1,000 entries of a process that ends, and forgets it after the last.
local function empty_process(P, process, each)
  call('ZADD', P .. 'gone', whole(now_ms()), process)
  local surplus = call('ZCARD', P .. 'gone') - 10000
  if surplus > 0 then call('ZREMRANGEBYRANK', P .. 'gone', 0, surplus - 1) end
  local now = now_ms()
  for _, text in ipairs(call('SPOP', P .. 'proc:' .. process, 1000)) do
    local it, job, index, claim = item_of_entry(P, text, process, now)
    if it then each(job, index, claim) end
  end
  local left = call('SCARD', P .. 'proc:' .. process)
  if left == 0 then
    call('UNLINK', P .. 'claimed:' .. process)
    call('SREM', P .. 'procs', process)
  end
  return {'OK', '', left}
end

-- from, to
function F.adopt(P, args)
  local from, to = args[3], args[4]
  if from == to then return {'INVALID', 'a process cannot adopt itself'} end
  if call('ZSCORE', P .. 'gone', to) then return {'STALE', 'process ' .. to .. ' was released'} end
  call('SADD', P .. 'procs', to)
  return empty_process(P, from, function(job, index, claim)
    claim.process = to
    write_claim(P, job.id, index, claim)
    call('SADD', P .. 'proc:' .. to, entry(job.id, index, whole(claim.attempt)))
  end)
end

-- fence, process
function F.release_process(P, args)
  local fence, known = tonumber(args[3]), tonumber(call('HGET', P .. 'meta', 'fence') or 0)
  if fence < known then
    return {'FENCED', 'elected at revision ' .. args[3] .. ', one of ' .. whole(known) .. ' acted'}
  end
  call('HSET', P .. 'meta', 'fence', args[3])
  return empty_process(P, args[4], function(job, index, claim) put_back(P, job, index, claim) end)
end

function F.processes(P, args)
  return {'OK', '', call('SRANDMEMBER', P .. 'procs', 1000)}
end

-- job, index, process, attempt, end, prompt, completion, cached, record
function F.commit(P, args)
  local job, claim, refusal = held(P, args)
  if refusal then return refusal end
  if claim.process == '0' then return {'STALE', 'the item was given back'} end
  local id, index, key = args[3], args[4], P .. 'job:' .. args[3]
  local done = job.done + 1
  call('HSET', P .. 'res:' .. id, whole(done),
    index .. ' ' .. args[7] .. ' ' .. args[6] .. '\n' .. args[11])
  call('HSET', P .. 'idx:' .. id, index, whole(done))
  call('HDEL', P .. 'claim:' .. id, index)
  call('SREM', P .. 'proc:' .. args[5], entry(id, index, args[6]))
  call('HSET', key, 'done', whole(done))
  call('HINCRBY', key, 'running', -1)
  call('HINCRBY', key, args[7] == 'ok' and 'succeeded' or 'failed', 1)
  call('HINCRBY', key, 'prompt_tokens', args[8])
  call('HINCRBY', key, 'completion_tokens', args[9])
  call('HINCRBY', key, 'cached_tokens', args[10])
  call('HINCRBY', key, 'version', 1)
  charge(P, job, tonumber(args[8]) + tonumber(args[9]) - job.item_tokens)
  if done == job.total then
    call('HSET', key, 'state', 'succeeded', 'end_ms', whole(now_ms()))
    call('ZREM', P .. 'exp', id)
  end
  return {'OK', ''}
end

-- job, index, process, attempt
function F.release(P, args)
  local job, claim, refusal = held(P, args)
  if refusal then return refusal end
  if claim.process ~= '0' then put_back(P, job, args[4], claim) end
  return {'OK', ''}
end

-- job, index, process, attempt, epoch
function F.note_death(P, args)
  local job, claim, refusal = held(P, args)
  if refusal then return refusal end
  if claim.process == '0' then return {'STALE', 'the item was given back'} end
  if claim.epoch ~= args[7] then
    claim.epoch = args[7]
    claim.deaths = claim.deaths + 1
    write_claim(P, job.id, args[4], claim)
  end
  return {'OK', '', claim.deaths}
end
