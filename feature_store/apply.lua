-- Add a batch to the features and move the positions past it, or do nothing at all.
--
-- KEYS[1]    {ns:p}:meta                 compared, then sequence, positions and newest event times written
-- KEYS[2]    {ns:p}:INC:items            written
-- KEYS[3]    {ns:p}:INC:products         written
-- KEYS[4..]  {ns:p}:INC:dirty:FREQ       written, a.dirty_freqs keys
-- KEYS[..]   {ns:p}:INC:sums:FREQ:SERIES read and written, one for each entry of a.sums
-- ARGV[1]    MessagePack: owner, incarnation, positions {{topic, expected or -1, next}}, newest {{source, ms}},
--            items and products {field, value, …}, dirty {item_id}, dirty_freqs (count), max_exact,
--            features (count), sums {{oldest bucket kept, most buckets kept, {bucket, delta, …}, …}}
-- Returns    {'OK', sequence} | {'APPLIED', sequence}: this very batch was applied before, its reply was lost
--            {'FENCED'}: another owner | {'BEHIND'}: meta lost, or a position that is not the expected one
--            {'OVERFLOW', key}: a sum would no longer be exact
-- Lua does not roll back: everything is read and checked before the first write.
local a = cmsgpack.unpack(ARGV[1])
local meta = KEYS[1]
local stored = redis.call('HMGET', meta, 'owner', 'incarnation', 'sequence')
if not stored[1] or stored[2] ~= a.incarnation then return {'BEHIND'} end
if stored[1] ~= a.owner then return {'FENCED'} end

local as_expected, as_next = true, true
for _, p in ipairs(a.positions) do
  local position = tonumber(redis.call('HGET', meta, 'position:' .. p[1]) or '-1')
  if position ~= p[2] then as_expected = false end
  if position ~= p[3] then as_next = false end
end
if not as_expected then
  if as_next then return {'APPLIED', stored[3]} end
  return {'BEHIND'}
end

local width = a.features
local row_pattern = '^' .. string.rep('(-?%d+),', width - 1) .. '(-?%d+)$'
local first_sums = 3 + a.dirty_freqs
local writes = {}
for i, sums in ipairs(a.sums) do
  local key, fields, fresh = KEYS[first_sums + i], {}, false
  for j = 3, #sums do
    local d = sums[j]
    local row = redis.call('HGET', key, d[1])
    local n = {unpack(d, 2, width + 1)}
    if row then
      local o = {string.match(row, row_pattern)}
      for c = 1, width do n[c] = n[c] + tonumber(o[c]) end
    else
      fresh = true
    end
    for c = 1, width do
      if n[c] >= a.max_exact or n[c] <= -a.max_exact then return {'OVERFLOW', key} end
      n[c] = string.format('%.0f', n[c])
    end
    fields[#fields + 1] = string.format('%.0f', d[1])
    fields[#fields + 1] = table.concat(n, ',')
  end
  writes[i] = {key, fields, fresh}
end

local function hset(key, fields)
  for from = 1, #fields, 1000 do
    redis.call('HSET', key, unpack(fields, from, math.min(from + 999, #fields)))
  end
end

local sequence = string.format('%.0f', tonumber(stored[3]) + 1)
for i, w in ipairs(writes) do
  hset(w[1], w[2])
  -- Slow items pay for what exists: buckets that have left the retention go once there are more than it can hold.
  if w[3] and redis.call('HLEN', w[1]) > a.sums[i][2] then
    local gone = {}
    for _, bucket in ipairs(redis.call('HKEYS', w[1])) do
      if tonumber(bucket) < a.sums[i][1] then gone[#gone + 1] = bucket end
    end
    for from = 1, #gone, 1000 do
      redis.call('HDEL', w[1], unpack(gone, from, math.min(from + 999, #gone)))
    end
  end
end
hset(KEYS[2], a.items)
hset(KEYS[3], a.products)
local marks = {}
for _, item in ipairs(a.dirty) do
  marks[#marks + 1] = item
  marks[#marks + 1] = sequence
end
for i = 1, a.dirty_freqs do hset(KEYS[3 + i], marks) end
local fields = {'sequence', sequence}
for _, p in ipairs(a.positions) do
  fields[#fields + 1] = 'position:' .. p[1]
  fields[#fields + 1] = string.format('%.0f', p[3])
end
for _, n in ipairs(a.newest) do
  fields[#fields + 1] = 'newest:' .. n[1]
  fields[#fields + 1] = string.format('%.0f', n[2])
end
redis.call('HSET', meta, unpack(fields))
return {'OK', sequence}
