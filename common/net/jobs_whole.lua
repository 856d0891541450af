-- The second half of the job library: jobs as a whole, session pointers, and which cluster this is.
-- It is joined behind jobs.lua, whose local functions it uses, and registers everything at its end.

---- jobs as a whole ----

function F.expire(P, args)
  local now, n = now_ms(), 0
  purge_uploads(P, now)
  for _, id in ipairs(call('ZRANGEBYSCORE', P .. 'exp', '-inf', whole(now), 'LIMIT', 0, 100)) do
    flip(P, load_job(P, id), 'expired', now)
    n = n + 1
  end
  return {'OK', '', n}
end

local function absent(id) return {'NOT_FOUND', 'job ' .. id .. ' was deleted or never was'} end

function F.cancel(P, args)
  local job, now = load_job(P, args[3]), now_ms()
  if not job then return absent(args[3]) end
  if overdue(job, now) then flip(P, job, 'expired', now) end
  if not ENDED[job.state] then flip(P, job, 'cancelled', now) end
  return {'OK', '', snapshot(P, args[3])}
end

function F.delete(P, args)
  local id = args[3]
  local job = load_job(P, id)
  if not job then return absent(id) end
  local more = call('HMGET', P .. 'job:' .. id, 'reserve', 'key')
  if not ENDED[job.state] then flip(P, job, 'cancelled', now_ms()) end
  local idem = P .. 'idem:' .. #job.tenant .. ':' .. job.tenant .. ':' .. more[2]
  if more[2] ~= '' and string.match(call('GET', idem) or '', '^%S+') == id then
    call('DEL', idem)
  end
  call('HINCRBY', P .. 'meta', 'bytes', '-' .. more[1])
  call('ZREM', P .. 'jobs', id)
  call('SREM', P .. 'queued', id)
  call('UNLINK', P .. 'job:' .. id, P .. 'items:' .. job.upload, P .. 'res:' .. id,
    P .. 'idx:' .. id)
  return {'OK', ''}
end

function F.get(P, args)
  local s = snapshot(P, args[3])
  if not s[1] then return absent(args[3]) end
  return {'OK', '', s}
end

-- before, n
function F.list(P, args)
  local top = args[3] == '0' and '+inf' or '(' .. args[3]
  local rows = {}
  for _, id in ipairs(call('ZREVRANGEBYSCORE', P .. 'jobs', top, '-inf', 'LIMIT', 0, args[4])) do
    rows[#rows + 1] = snapshot(P, id)
  end
  return {'OK', '', rows}
end

function F.queued(P, args) return {'OK', '', call('SCARD', P .. 'queued')} end

-- (job, version)...
function F.poll(P, args)
  local rows = {}
  for i = 3, #args - 1, 2 do
    local version = call('HGET', P .. 'job:' .. args[i], 'version')
    if not version then rows[#rows + 1] = {args[i]}
    elseif tonumber(version) > tonumber(args[i + 1]) then rows[#rows + 1] = snapshot(P, args[i]) end
  end
  return {'OK', '', rows}
end

-- Writes records for items that the job's end ended, as far as this page needs them. `fill` only
-- rises, so all pages together look at each index once.
local function fill_records(P, job, upto)
  local key = P .. 'job:' .. job.id
  local fill = tonumber(call('HGET', key, 'fill'))
  while job.done < job.total and job.done < upto do
    if call('HEXISTS', P .. 'idx:' .. job.id, whole(fill)) == 0 then
      job.done = job.done + 1
      call('HSET', P .. 'res:' .. job.id, whole(job.done),
        whole(fill) .. ' ' .. job.state .. ' 0\n')
      call('HSET', P .. 'idx:' .. job.id, whole(fill), whole(job.done))
    end
    fill = fill + 1
  end
  call('HSET', key, 'fill', whole(fill), 'done', whole(job.done))
end

-- job, after, n
function F.results(P, args)
  local job, after, n = load_job(P, args[3]), tonumber(args[4]), tonumber(args[5])
  if not job then return absent(args[3]) end
  local upto = after + n
  if (job.state == 'cancelled' or job.state == 'expired') and job.done < upto then
    fill_records(P, job, upto)
  end
  local rows, bytes = {}, 0
  for completion = after + 1, math.min(upto, job.done) do
    rows[#rows + 1] = read_record(P, job, whole(completion))
    bytes = bytes + #rows[#rows][5] + #rows[#rows][6]
    if bytes >= PAGE_BYTES then break end
  end
  return {'OK', '', rows, snapshot(P, args[3])}
end

---- session pointers ----

-- id, owner, pointer, ttl_ms
function F.req_put(P, args)
  local key = P .. 'req:' .. args[3]
  local owner = tonumber(call('HGET', key, 'owner') or 0)
  if owner > tonumber(args[4]) then return {'STALE', 'a newer owner', owner} end
  call('HSET', key, 'owner', args[4], 'pointer', args[5])
  call('PEXPIRE', key, args[6])
  return {'OK', '', tonumber(args[4])}
end

function F.req_get(P, args)
  local r = call('HMGET', P .. 'req:' .. args[3], 'owner', 'pointer')
  if not r[1] then return {'NOT_FOUND', 'no such request'} end
  return {'OK', '', tonumber(r[1]), r[2]}
end

function F.req_take(P, args)
  local key = P .. 'req:' .. args[3]
  local r = call('HMGET', key, 'owner', 'pointer')
  if not r[1] then return {'NOT_FOUND', 'no such request'} end
  if tonumber(r[1]) ~= tonumber(args[4]) then
    return {'CONFLICT', 'another coordinator took it', tonumber(r[1]), r[2]}
  end
  call('HSET', key, 'owner', whole(tonumber(args[4]) + 1), 'pointer', args[5])
  call('PEXPIRE', key, args[6])
  return {'OK', '', tonumber(args[4]) + 1, args[5]}
end

function F.req_drop(P, args)
  local key = P .. 'req:' .. args[3]
  local owner = tonumber(call('HGET', key, 'owner') or 0)
  if owner > tonumber(args[4]) then return {'STALE', 'a newer owner', owner} end
  call('DEL', key)
  return {'OK', '', owner}
end

---- which cluster ----

local M = {}

local function meta_row(P)
  local m = call('HMGET', P .. 'meta', 'uuid', 'incarnation', 'revision', 'confirmed')
  return {m[1] and 1 or 0, m[1] or '', tonumber(m[2] or 0), tonumber(m[3] or 0),
    tonumber(m[4] or 0)}
end

function M.meta_get(P, args) return {'OK', '', meta_row(P)} end

-- uuid. Redis's meta is made before etcd's, so a lone etcd meta means that Redis was emptied.
function M.meta_create(P, args)
  if call('EXISTS', P .. 'meta') == 0 then
    call('HSET', P .. 'meta', 'uuid', args[1], 'incarnation', 1, 'revision', 0, 'confirmed', 0)
  end
  return {'OK', '', meta_row(P)}
end

-- uuid, incarnation, revision, as etcd says them
function M.meta_check(P, args)
  local m, incarnation, revision = meta_row(P), tonumber(args[2]), tonumber(args[3])
  local why
  if m[1] == 0 then
    why = 'redis holds no cluster: it was emptied; accept with: shoal adopt redis'
  elseif m[2] ~= args[1] then
    why = 'redis belongs to cluster ' .. m[2] .. ', etcd to ' .. args[1]
  elseif m[3] > incarnation then
    why = 'etcd is of incarnation ' .. args[2] .. ', redis of ' .. whole(m[3]) ..
      ': etcd was restored; accept with: shoal adopt etcd'
  elseif m[3] < incarnation then
    why = 'redis is of incarnation ' .. whole(m[3]) .. ', etcd of ' .. args[2] ..
      ': redis was restored; accept with: shoal adopt redis'
  elseif revision < m[4] then
    why = "etcd's revision " .. args[3] .. ' is below ' .. whole(m[4]) ..
      ', which was seen: etcd was restored; accept with: shoal adopt etcd'
  end
  if why then return {'WRONG_STORE', why, m} end
  call('HSET', P .. 'meta', 'revision', args[3], 'confirmed', 1)
  return {'OK', '', meta_row(P)}
end

-- uuid, incarnation, revision
function M.meta_adopt(P, args)
  local m, incarnation = meta_row(P), tonumber(args[2])
  if m[1] == 1 and incarnation <= m[3] and not (m[2] == args[1] and incarnation == m[3]) then
    return {'CONFLICT', 'redis is of incarnation ' .. whole(m[3]) .. ' already', m}
  end
  call('HSET', P .. 'meta', 'uuid', args[1], 'incarnation', args[2], 'revision', args[3],
    'confirmed', 1)
  call('HDEL', P .. 'meta', 'fence')
  return {'OK', '', meta_row(P)}
end

---- registration ----

-- While a library is loaded there is neither pairs nor ipairs, hence the list of names. Only what
-- takes in new bytes stops when Redis is out of memory: what ends work must pass.
local NAMES = {'put', 'submit', 'req_put', 'req_take', 'drop', 'claim', 'mine', 'adopt',
  'release_process', 'processes', 'commit', 'release', 'note_death', 'expire', 'cancel', 'delete',
  'get', 'list', 'queued', 'poll', 'results', 'req_get', 'req_drop'}
local N_INTAKE = 4
local META_NAMES = {'meta_get', 'meta_create', 'meta_check', 'meta_adopt'}

for i = 1, #NAMES do
  local f = F[NAMES[i]]
  redis.register_function{
    function_name = 'shoal_jobs_v2_' .. NAMES[i],
    callback = function(keys, args) return strange(keys[1], args) or f(keys[1], args) end,
    flags = i <= N_INTAKE and {} or {'allow-oom'}
  }
end
for i = 1, #META_NAMES do
  local f = M[META_NAMES[i]]
  redis.register_function{
    function_name = 'shoal_jobs_v2_' .. META_NAMES[i],
    callback = function(keys, args) return f(keys[1], args) end,
    flags = {'allow-oom'}
  }
end
