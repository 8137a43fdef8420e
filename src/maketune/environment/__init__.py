"""The env-verify step: can this environment do the work?"""
